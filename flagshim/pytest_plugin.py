"""The pytest plugin: off unless asked for by --flagshim or the fixture; docs/library.md.

pytest imports this module in every session, so it imports nothing of flagshim until then, and
uses nothing that pytest 7.0 has not: it must not break the sessions of people who want none of it.
"""

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flagshim.supervised import Completed
    from flagshim.testtraces import Sum, TestTraces

_ROWS = 23
"""Rows of the table in the summary; the trace has the others."""
_WORKERINPUT = "flagshim_folder"
_folder = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("flagshim")
    group.addoption(
        "--flagshim",
        action="store_true",
        help="run what tests start by subprocess under flagshim, and list the opens it rewrote",
    )
    group.addoption(
        "--flagshim-trace",
        metavar="FILE",
        help="trace to add them to (default: a new file in $XDG_STATE_HOME/flagshim)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin, if asked to."""
    config.addinivalue_line("markers", "no_flagshim: what this test starts stays without flagshim")
    if config.getoption("flagshim"):
        if not hasattr(config, "workerinput"):
            _try_out(config)
        config.pluginmanager.register(_Supervising(_traces_of(config)), "flagshim-supervising")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # noqa: ANN401  (pytest-xdist's)
    """Tell a worker of pytest-xdist where traces go."""
    node.workerinput[_WORKERINPUT] = str(_folder_of(node.config))


def _folder_of(config: pytest.Config) -> Path:
    """Return where the traces of this test session go, its workers' too; it may not exist."""
    if _folder not in config.stash:
        given = getattr(config, "workerinput", {}).get(_WORKERINPUT)
        name = f"flagshim-pytest-{secrets.token_hex(8)}"
        config.stash[_folder] = Path(given or os.path.join(tempfile.gettempdir(), name))
    return config.stash[_folder]


def _traces_of(config: pytest.Config) -> "TestTraces":
    from flagshim.testtraces import TestTraces  # noqa: PLC0415

    return TestTraces(_folder_of(config))


def _try_out(config: pytest.Config) -> None:
    """Find out before the first test whether flagshim works here."""
    import subprocess  # noqa: PLC0415

    from flagshim.interpreter import ourselves  # noqa: PLC0415

    trace = str(_traces_of(config).folder / "try.db")
    command = [*ourselves(), "exec", "-o", trace, "--", "/bin/sh", "-c", ":"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        _traces_of(config).remove()
        raise pytest.UsageError(f"--flagshim: {result.stderr.strip() or result.returncode}")
    wanted = config.getoption("flagshim_trace")
    if wanted:
        from flagshim.errors import FlagshimError  # noqa: PLC0415
        from flagshim.trace.store import make_trace  # noqa: PLC0415

        try:
            make_trace(Path(wanted))
        except FlagshimError as error:
            _traces_of(config).remove()
            raise pytest.UsageError(f"--flagshim-trace: {error}") from None


class _Supervising:
    """Has the processes of the current test supervised."""

    def __init__(self, traces: "TestTraces") -> None:
        from flagshim.interception import Interception  # noqa: PLC0415

        self._traces = traces
        self._interception = Interception(self._trace_for, self._started)
        self._item: pytest.Item | None = None

    def _trace_for(self, obstacle: str) -> str | None:
        if self._item is None:
            return None
        if self._item.get_closest_marker("no_flagshim"):
            obstacle = "marked no_flagshim"
        if obstacle:
            self._traces.note(self._item.nodeid, obstacle=obstacle)
            return None
        return self._traces.new()

    def _started(self, trace: str, pid: int) -> None:
        if self._item is not None:
            self._traces.note(self._item.nodeid, trace, pid)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtestloop(self) -> Iterator[None]:
        """Have Popen ask us, from the first test to the last."""
        self._interception.begin()
        yield
        self._interception.end()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Know whose processes they are: the test's, and its fixtures'."""
        self._item = item
        yield
        self._item = None


@pytest.fixture
def flagshim(request: pytest.FixtureRequest) -> "Callable[..., Completed]":
    """Run a command under flagshim; return it with its events.

    Takes what flagshim.run takes. Output is captured unless it is sent somewhere.
    """
    from flagshim.supervised import run  # noqa: PLC0415

    traces, test = _traces_of(request.config), request.node.nodeid

    def run_it(args: Any, **options: Any) -> "Completed":  # noqa: ANN401
        if not options.keys() & {"stdout", "stderr", "capture_output"}:
            options["capture_output"] = True
        if "trace" not in options:
            options["trace"] = traces.new()
            traces.note(test, options["trace"])
        return run(args, **options)

    return run_it


def pytest_terminal_summary(
    terminalreporter: "pytest.TerminalReporter", config: pytest.Config
) -> None:
    """List the opens that were rewritten, by test."""
    if not _folder_of(config).exists():
        return
    from flagshim.errors import FlagshimError  # noqa: PLC0415
    from flagshim.reports.text import command_line  # noqa: PLC0415
    from flagshim.trace.location import new_trace  # noqa: PLC0415

    terminalreporter.section("flagshim")
    wanted = config.getoption("flagshim_trace")
    try:
        target = Path(wanted) if wanted else None
        if target is None and config.getoption("flagshim"):
            target = new_trace("pytest")
        lines = _summary(_traces_of(config).merge(target))
        if target is not None:
            lines.append("see: " + command_line(["flagshim", "report", str(target)]))
    except FlagshimError as error:
        lines = [f"flagshim: {error}"]
    for line in lines:
        terminalreporter.line(line)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    if not hasattr(config, "workerinput") and _folder_of(config).exists():
        _traces_of(config).remove()


def _summary(total: "Sum") -> list[str]:
    from tabulate import tabulate  # noqa: PLC0415

    from flagshim.reports.text import printable  # noqa: PLC0415

    lines = []
    if total.intercepted:
        rows = [
            (
                printable(row.test),
                printable(row.program),
                printable(row.path),
                row.opens,
                row.failed,
            )
            for row in total.intercepted[:_ROWS]
        ]
        headings = ("TEST", "PROGRAM", "PATH", "REWRITTEN", "FAILED")
        lines += tabulate(rows, headings, "plain", disable_numparse=True).splitlines()
        if len(total.intercepted) > _ROWS:
            lines.append(f"and {len(total.intercepted) - _ROWS} more")
    lines.append(
        f"{_count(total.processes, 'process', 'processes')} of {_count(total.tests, 'test')} "
        f"supervised, {total.cleared} of {_count(total.seen, 'open')} rewritten"
    )
    if total.lost or total.blind_spots:
        lines.append(f"not seen: {total.lost} lost opens, {total.blind_spots} blind spots")
    if total.running:
        lines.append(f"{_count(total.running, 'process', 'processes')} not ended yet")
    if total.obstacles:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(total.obstacles.items()))
        lines.append(f"not supervised: {reasons}")
    return lines + [printable(trouble) for trouble in total.troubles]


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
