"""All figures of a run, and the bounds they are held against."""

from dataclasses import asdict, dataclass

from tests.bench.contestants import Contestant
from tests.bench.guest import Reading
from tests.bench.memory import Footprint
from tests.bench.opens import Opens
from tests.bench.quiet import Quiet
from tests.bench.rounds import Series

MIB = 1 << 20

_OPEN_LIMIT = 1.15
_NOTIFY_LIMIT = 0.8
_START_LIMIT = 150
_MEMORY_LIMIT = 40


@dataclass(frozen=True)
class Results:
    """What a run found."""

    machine: dict[str, str]
    load: tuple[float, float]
    """Of the minute before the run, and of its last one."""
    quiet: Quiet
    """How much of it was undisturbed."""
    opens: Opens
    starts: Series
    memory: dict[Contestant, Footprint]
    guest: Reading | str
    """Or the reason why there is none."""

    def as_json(self) -> dict[str, object]:
        """Return everything, each sample of it, for other programs."""
        judged = [asdict(bound) | {"met": bound.met} for bound in bounds(self)]
        return asdict(self) | {"bounds": judged}


@dataclass(frozen=True)
class Bound:
    """A figure that is not to be exceeded."""

    what: str
    found: float
    limit: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether it is not."""
        return self.found <= self.limit


def bounds(results: Results) -> list[Bound]:
    """Hold the results against what flagshim promises."""
    flagshim, native, notify = Contestant.FLAGSHIM, Contestant.NATIVE, Contestant.NOTIFY
    rewritten = results.opens.refused.ratio(flagshim, Contestant.STRACE_BPF)
    plain = results.opens.plain.ratio(flagshim, native)
    start = results.starts.difference(flagshim, native)
    memory = results.memory[flagshim]
    sizes = {f"largest resident set of the {name}": size for name, size in memory.hwm.items()}
    sizes["proportional sets of these, together"] = memory.pss
    return [
        Bound(
            "rewritten open / refused one under strace --seccomp-bpf", rewritten, _OPEN_LIMIT, ""
        ),
        Bound(
            "rewritten open by the notify engine / by the ptrace engine",
            results.opens.refused.ratio(notify, flagshim),
            _NOTIFY_LIMIT,
            "",
        ),
        Bound("open without O_NOATIME / native", plain, _OPEN_LIMIT, ""),
        Bound(
            "the same under the notify engine / native",
            results.opens.plain.ratio(notify, native),
            _OPEN_LIMIT,
            "",
        ),
        Bound("start of a process - native", start, _START_LIMIT, " ms"),
        *(Bound(what, size / MIB, _MEMORY_LIMIT, " MiB") for what, size in sizes.items()),
    ]
