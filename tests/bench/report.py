"""The results as Markdown, ready for a README."""

from tabulate import tabulate

from tests.bench.contestants import Contestant
from tests.bench.memory import Footprint
from tests.bench.results import MIB, Results, bounds
from tests.bench.rounds import Series

NATIVE, STRACE_BPF = Contestant.NATIVE, Contestant.STRACE_BPF
FLAGSHIM, NOTIFY = Contestant.FLAGSHIM, Contestant.NOTIFY
NONE = "-"


def markdown(results: Results, command: str) -> str:
    """Return the figures, how to read them, what they were taken on, and the bounds."""
    parts = (_figures(results), _notes(results), _conditions(results, command), _bounds(results))
    return "\n\n".join(parts)


def _figures(results: Results) -> str:
    opens, guest = results.opens, results.guest
    rows = [
        _row("refused open, µs", opens.refused, STRACE_BPF),
        *([_row("the same on one CPU, µs", opens.crowded, STRACE_BPF)] if opens.crowded else []),
        _row("allowed open, µs", opens.allowed, STRACE_BPF),
        _row("open without O_NOATIME, µs", opens.plain, NATIVE),
        _start_row(results.starts),
        _memory_row(results.memory),
    ]
    if not isinstance(guest, str):
        rows.append(_row(f"QEMU's guest reads {guest.files:,} files, s", guest.seconds, NATIVE))
    return tabulate(
        rows,
        ["", *Contestant, "flagshim is", "with notify it is"],
        tablefmt="github",
        disable_numparse=True,
        colalign=("left", *["right"] * len(Contestant), "left", "left"),
    )


def _row(what: str, series: Series, reference: Contestant) -> list[str]:
    return [
        what,
        *_medians(series),
        f"{_ratio(series, FLAGSHIM, reference)} of {reference}",
        f"{_ratio(series, NOTIFY, FLAGSHIM)} of that",
    ]


def _ratio(series: Series, of: Contestant, to: Contestant) -> str:
    low, high = series.spread(of, to)
    return f"{series.ratio(of, to):.2f} ({low:.2f} to {high:.2f})"


def _start_row(series: Series) -> list[str]:
    beyond = [f"{series.difference(how, NATIVE):.0f} ms + {NATIVE}" for how in (FLAGSHIM, NOTIFY)]
    return ["`true`, from start to end, ms", *_medians(series), *beyond]


def _memory_row(memory: dict[Contestant, Footprint]) -> list[str]:
    sizes = [f"{memory[how].pss / MIB:.1f}" if how in memory else NONE for how in Contestant]
    return ["memory (PSS), MiB", *sizes, *(_peaks(memory[how]) for how in (FLAGSHIM, NOTIFY))]


def _peaks(footprint: Footprint) -> str:
    peaks = [f"{size / MIB:.1f} in the {name}" for name, size in footprint.hwm.items()]
    return f"resident at most {', '.join(peaks)}"


def _medians(series: Series) -> list[str]:
    found = [series.median(how) for how in Contestant]
    return [NONE if figure is None else _three_digits(figure) for figure in found]


def _three_digits(figure: float) -> str:
    decimals = 0 if figure >= 100 else 1 if figure >= 10 else 2
    return f"{figure:.{decimals}f}"


def _notes(results: Results) -> str:
    opens, guest = results.opens, results.guest
    lines = [
        f"Medians; rounds: {opens.refused.rounds} ({opens.plain.rounds} where nothing stops, "
        f"{results.starts.rounds} for `true`). Everybody runs once in a round, in an order that "
        "is rotated. A ratio is the median of the rounds' ratios, with their range: what slows a "
        "whole round down cancels out.",
        "An open is open(2) and close(2) by one thread, by the program's own clock, "
        f"{opens.counts.stopped:,} in a row ({opens.counts.unstopped:,} where nothing stops them, "
        f"{opens.counts.aside:,} for what is shown for completeness). Refused: O_NOATIME on root's "
        "file by nobody, which natively and under strace stays refused, and succeeds under "
        "LD_PRELOAD and flagshim. Allowed: by the owner. strace and flagshim write each down, "
        "and none was missing.",
        f"Memory: the supervisor's, its peak while {opens.counts.stopped:,} refused opens are "
        "made and after them; a page that several processes share is divided among them.",
    ]
    if opens.crowded:
        lines.append(
            "One CPU: the others are kept busy, so that supervisor and program take turns on one, "
            "and no idle CPU is to be woken, which is what takes longest in the row above."
        )
    if isinstance(guest, str):
        lines.append(f"No guest was booted: {guest}.")
    else:
        lines.append(
            f"Guest: Linux {guest.release}, emulated, reads from overlayfs on 9p; its own clock, "
            f"without the boot, median of {guest.seconds.rounds}. Natively and under strace each "
            "open of QEMU is refused and made again."
        )
    return "\n".join(f"- {line}" for line in lines)


def _conditions(results: Results, command: str) -> str:
    machine = results.machine
    before, after = results.load
    versions = ", ".join(f"{name} {machine[name]}" for name in ("flagshim", *_VERSIONS))
    return (
        f"Made by `{command}` on {machine['processor']}; {machine['system']}, "
        f"{machine['kernel']}; {versions}. "
        f"Load {before:.2f} before, {after:.2f} at the end; other work disturbed "
        f"{results.quiet.disturbed} of {results.quiet.taken} figures."
    )


_VERSIONS = ("Python", "strace", "QEMU")


def _bounds(results: Results) -> str:
    rows = [
        [
            bound.what,
            f"{bound.found:.2f}{bound.unit}",
            f"≤ {bound.limit:g}{bound.unit}",
            "pass" if bound.met else "FAIL",
        ]
        for bound in bounds(results)
    ]
    return tabulate(
        rows,
        ["bound", "found", "limit", ""],
        tablefmt="github",
        disable_numparse=True,
        colalign=("left", "right", "right", "left"),
    )
