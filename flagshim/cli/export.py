"""`flagshim export`."""

import importlib
from pathlib import Path
from types import ModuleType

import click

from flagshim.cli.reading import reading
from flagshim.errors import FlagshimError
from flagshim.exports.records import records
from flagshim.saying import say
from flagshim.trace.location import latest_trace, state_directory


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: flagshim export boot.db --parquet boot.parquet",
)
@click.option("--parquet", "file", metavar="FILE", type=click.Path(path_type=Path),
              help="Write a Parquet file, replaced as a whole.")  # fmt: skip
@click.option("--otlp", "endpoint", metavar="URL",
              help="Send log records to an OTLP endpoint, by HTTP.")  # fmt: skip
@click.argument("trace", required=False, type=click.Path(path_type=Path))
def export(trace: Path | None, file: Path | None, endpoint: str | None) -> int:
    """Hand a trace on to what looks at many machines; without TRACE, the latest one.

    Every row or record says its session, host and CI job. The trace stays as it is.

    An endpoint that is down or slow is tried again for 10 seconds ($OTEL_EXPORTER_OTLP_TIMEOUT);
    headers, certificates and compression are taken from the OTEL_EXPORTER_OTLP_... variables.
    """
    if file is None and endpoint is None:
        raise FlagshimError("nowhere to export to", "give --parquet FILE or --otlp URL")
    source = trace or latest_trace(state_directory())
    if file is not None:
        parquet = _module("parquet")
        with reading(source, "exporting") as (reader, _):
            count = parquet.write(records(reader), file)
        say(f"{count} rows in {file}")
    if endpoint is not None:
        otlp = _module("otlp")
        with reading(source, "sending") as (reader, _):
            count = otlp.send(records(reader), endpoint)
        say(f"{count} records sent to {otlp.shown(endpoint)}")
    return 0


def _module(name: str) -> ModuleType:
    """Return the module that does it; it imports what only some people have installed.

    Raises:
        FlagshimError: they have not.
    """
    try:
        return importlib.import_module(f"flagshim.exports.{name}")
    except ImportError as error:
        raise FlagshimError(f"--{name}: {error}", f"pip install 'flagshim[{name}]'") from None
