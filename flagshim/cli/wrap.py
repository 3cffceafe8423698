"""`flagshim wrap`."""

from pathlib import Path

import click

from flagshim.cli.engine import Engine, engine_option
from flagshim.cli.supervision import Asked, supervision_options
from flagshim.reports.text import printable
from flagshim.wrapper import write_wrapper


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: flagshim wrap qemu-system-x86_64 -o /usr/local/bin/qemu-noatime",
)
@click.option("-o", "--output", "file", metavar="FILE", required=True,
              type=click.Path(path_type=Path), help="Where to write the wrapper.")  # fmt: skip
@click.option("-f", "--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--trace", metavar="FILE", type=click.Path(path_type=Path),
              help="Trace of all its runs. Default: PROGRAM.db in $XDG_STATE_HOME/flagshim of "
              "whoever runs it.")  # fmt: skip
@engine_option(Engine.PTRACE, Engine.NOTIFY, Engine.AUTO)
@supervision_options
@click.argument("program")
def wrap(
    program: str,
    file: Path,
    force: bool,
    trace: Path | None,
    engine: str,
    asked: Asked,
) -> int:
    """Write an executable FILE that stands for PROGRAM: it runs it through `flagshim exec`.

    Arguments go through unchanged, and so do PID, exit status and signals. A lone --help or
    --version is answered by PROGRAM alone, as quickly as ever. Give it to whatever
    wants to know where QEMU is: libvirt's <emulator>, a systemd unit, a test driver. The trace
    has to be writable by whoever runs it.
    """
    asked.supervision(Path())  # say now what would be wrong at every run
    options = ["-o", str(trace.absolute())] if trace else []
    options += [] if engine == Engine.PTRACE else ["--engine", engine]
    options += asked.words()
    target = write_wrapper(program, file, options, force)
    click.echo(f"{printable(str(file))} stands for {printable(str(target))}")
    return 0
