"""Conditions, baselines, and what a gate makes of a trace."""

import os
import random
import subprocess
from pathlib import Path

import pytest

from flagshim.errors import FlagshimError
from flagshim.gates.baseline import Baseline, Effect, Entry, Finding, literally, texts
from flagshim.gates.condition import Condition, Metric
from flagshim.gates.judgement import Gate
from flagshim.gates.patterns import MANY, generalise
from flagshim.reports import baselinefile
from flagshim.reports.gate import verdict
from flagshim.trace.events import Reason
from flagshim.trace.reader import TraceReader
from tests.support import HANGS, REPOSITORY, flagshim_command
from tests.unit.test_report_cli import NASTY, nasty
from tests.unit.tracebuilder import FAILED, KEPT, OPEN, START, STILL_REFUSED, Trace, small


def flagshim(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*flagshim_command(), *map(os.fspath, arguments)], capture_output=True, text=True,
        check=False, timeout=HANGS, cwd=REPOSITORY, env={**os.environ, **environment},
    )  # fmt: skip


def counts(trace: Path, *metrics: Metric, baseline: Path | None = None) -> list[int]:
    conditions = tuple(Condition(metric) for metric in metrics)
    expected = None if baseline is None else baselinefile.read(baseline)
    with TraceReader(trace) as reader:
        return [judged.count for judged in Gate(conditions, expected).judge(reader).judged]


def baseline_of(trace: Path, *options: str) -> Path:
    made = flagshim("baseline", trace, *options)
    assert made.returncode == 0, made.stderr
    path = trace.with_suffix(".txt")
    path.write_text(made.stdout)
    return path


# --- conditions -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("rewrites > 0", Condition(Metric.REWRITES, ">", 0)),
        ("refusals>7", Condition(Metric.REFUSALS, ">", 7)),
        ("refusal", Condition(Metric.REFUSALS)),
        ("Failed after rewrite", Condition(Metric.FAILED_AFTER_REWRITE)),
        ("failed-after-rewrite>=3", Condition(Metric.FAILED_AFTER_REWRITE, ">=", 3)),
        ("unknown_path", Condition(Metric.UNKNOWN_PATH)),
        (" unknown  paths ", Condition(Metric.UNKNOWN_PATH)),
        ("lost events", Condition(Metric.LOST_EVENTS)),
        ("lost", Condition(Metric.LOST_EVENTS)),
        ("rewrites == 0", Condition(Metric.REWRITES, "==", 0)),
        ("rewrites != 503", Condition(Metric.REWRITES, "!=", 503)),
        ("blind spots <= 1", Condition(Metric.BLIND_SPOTS, "<=", 1)),
    ],
)
def test_what_an_expression_means(text: str, condition: Condition) -> None:
    assert Condition.parse(text) == condition
    assert Condition.parse(str(condition)) == condition


@pytest.mark.parametrize(
    "text", ["", ">", "opens", "rewrites >", "rewrites > -1", "rewrites > x", "> 0", "rewrites = 0",
             "rewrites > 0 or refusals", "lost\nevents > 0 x", "rewrites > ٣"],
)  # fmt: skip
def test_what_it_cannot_mean(text: str) -> None:
    with pytest.raises(ValueError, match="is not one of rewrites, refusals"):
        Condition.parse(text)


def test_when_each_operator_fails() -> None:
    for operator, failing in ((">", [8]), (">=", [7, 8]), ("<", [6]), ("<=", [6, 7]),
                              ("==", [7]), ("!=", [6, 8])):  # fmt: skip
        condition = Condition(Metric.REWRITES, operator, 7)
        assert [n for n in (6, 7, 8) if condition.met(n)] == failing


# --- what is counted ----------------------------------------------------------------------


def test_every_metric(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.db")
    trace.session(seen=97, lost=3)
    for number, how in (
        (2, {}),
        (3, STILL_REFUSED),
        (5, {**FAILED, "errno": "EACCES"}),
        (7, {"fd": None, "errno": "ENOENT"}),
        (11, KEPT),
        (13, FAILED),
        (17, {"path": None, "resolved": None}),
        (19, {**KEPT, "path": None, "resolved": None}),
    ):
        trace.events([OPEN._replace(**how)] * number)
    trace.blind_spot("io_uring", "qemu", 23)
    trace.close()
    assert counts(trace.path, *Metric) == [
        2 + 3 + 7 + 17, 3 + 5, 3 + 7, 17, 97 - 77, 23,
    ]  # fmt: skip


def test_what_the_trace_could_not_take_counts(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.db")
    trace.session(seen=7, lost=3)
    with TraceReader(trace.close()) as reader:
        gate = Gate((Condition(Metric.LOST_EVENTS),))
        assert gate.judge(reader, lost=5).judged[0].count == 7
        assert gate.judge(reader, lost=97).judged[0].count == 97


def test_a_session_without_an_end_is_not_complete(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.db")
    trace.session(ended_ns=None)
    with TraceReader(trace.close()) as reader:
        judgement = Gate((Condition(Metric.LOST_EVENTS),)).judge(reader)
    assert judgement.failed
    assert "1 session has no end: nobody knows what came later" in verdict(judgement)


def test_what_is_new_fails_also_beside_other_conditions(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.db")
    trace.session(seen=1)
    trace.event()
    path = trace.close()
    nothing = Baseline("nothing", [])
    with TraceReader(path) as reader:
        for conditions, fails in (
            ((), True),
            ((Condition(Metric.LOST_EVENTS),), True),
            ((Condition(Metric.REWRITES, ">", 7),), False),
        ):
            assert Gate(conditions, nothing).judge(reader).failed is fails


def test_a_session_of_many_and_since(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.db")
    for session in (1, 2):
        trace.session(seen=session)
        trace.events([OPEN._replace(time_ns=START + session)] * session, session)
    with TraceReader(trace.close()) as reader:
        gate = Gate((Condition(Metric.REWRITES), Condition(Metric.LOST_EVENTS)))
        assert [j.count for j in gate.judge(reader).judged] == [3, 0]
        assert [j.count for j in gate.judge(reader, session=2).judged] == [2, 0]
        assert gate.judge(reader, since_ns=START + 2).judged[0].count == 2


def test_dropped_events_are_judged_as_others(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.db")
    trace.session(seen=503)
    dice = random.Random(3)
    for number in range(503):
        how = dice.choice([{}, KEPT, FAILED, STILL_REFUSED, {"errno": "ENOENT", "fd": None},
                           {**FAILED, "errno": "EPERM"}, {"rule": None, **KEPT}])  # fmt: skip
        resolved = dice.choice(["/a", b"/\xff", None])
        trace.event(time_ns=START + number, path=None, resolved=resolved, **how)
    with TraceReader(trace.path) as reader:
        before = list(reader.opened())
    all_counts = counts(trace.path, *Metric)
    from flagshim.trace.sums import DROP_EVENTS

    for at in (101, 307):
        for statement in DROP_EVENTS:
            trace.db.execute(statement, (at,))
    with TraceReader(trace.close()) as reader:
        assert reader.dropped() == {1: 306}
        assert list(reader.opened()) == before
    assert counts(trace.path, *Metric) == all_counts


# --- baselines as text ----------------------------------------------------------------------


def test_baseline_of_a_trace(tmp_path: Path) -> None:
    text = baseline_of(small(tmp_path / "t.db")).read_text()
    assert text.startswith("# flagshim baseline 1\n")
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        "refused    noatime  qemu-system-x86_64  /etc/frozen",
        "rewritten  noatime  qemu-system-x86_64  /nix/store/hello",
    ]


@pytest.mark.parametrize("option", [(), ("--exact",)])
def test_a_trace_passes_with_its_own_baseline(tmp_path: Path, option: tuple[str, ...]) -> None:
    trace = nasty(tmp_path / "t.db")
    path = baseline_of(trace, *option)
    assert path.read_text().isprintable() or path.read_text().replace("\n", "").isprintable()
    for baseline in (path, trace):
        result = flagshim("report", trace, "--baseline", baseline)
        assert result.returncode == 0, result.stderr
        assert result.stderr == "flagshim: gate passed\n"


def test_names_come_back_from_the_text(tmp_path: Path) -> None:
    names = [*NASTY, "a [b] c", "*?[", "-", "(unknown)", "\\", "#", " "]
    entries = [
        texts(Finding(Effect.REWRITTEN, "a rule", "prog ram" if n is None else n, n, 1))
        for n in names
    ]
    lines = "".join(f"{baselinefile.line(literally(entry))}\n" for entry in entries)
    (tmp_path / "b").write_text(lines)
    baseline = baselinefile.read(tmp_path / "b")
    assert list(baseline.entries) == list(map(literally, entries))
    for at, name in enumerate(names):
        program = "prog ram" if name is None else name
        assert baseline.find(Finding(Effect.REWRITTEN, "a rule", program, name, 1)) == at
        assert baseline.find(Finding(Effect.REFUSED, "a rule", program, name, 1)) is None
        assert baseline.find(Finding(Effect.REWRITTEN, None, program, name, 1)) is None
        assert baseline.find(Finding(Effect.REWRITTEN, "a rule", "other", name, 1)) is None


def test_globs_expect_what_they_match() -> None:
    globs = ["/nix/store/*/lib/**", "/srv/[ab]?/*", "**/name", "/etc/**", "relative*"]
    entries = [Entry(Effect.REWRITTEN, "*", "qemu-*", glob) for glob in globs]
    entries.append(Entry(Effect.REFUSED, "-", "*", "/x/*"))
    baseline = Baseline("b", entries)

    def found(path: str, program: str = "qemu-a", rule: str | None = "r") -> int | None:
        return baseline.find(Finding(Effect.REWRITTEN, rule, program, path, 1))

    assert found("/nix/store/p/lib/a/b") == 0
    assert found("/nix/store/p/q/lib/a") is None
    assert found("/srv/a1/f") == 1
    assert found("/srv/c1/f") is None
    assert found("/anywhere/name") == 2
    assert found("/etc/a/b") == 3
    assert found("relative-1") == 4
    assert found("/etc/a", program="bash") is None
    assert baseline.find(Finding(Effect.REFUSED, None, "bash", "/x/y", 1)) == 5
    assert baseline.find(Finding(Effect.REFUSED, "r", "bash", "/x/y", 1)) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rewritten a b\n", ":1: 3 of 4 columns; a line is EFFECT RULE PROGRAM PATH"),
        ("# x\n\nkept a b /c\n", ":3: 'kept' is not one of rewritten, refused, failed"),
        ("rewritten a b /c[\n", ":1: glob '/c[' has a [ without its ]"),
        ("rewritten a b /c\\d\n", ":1: a backslash that escapes nothing"),
        ("rewritten a b \\Uffffffff\n", "is no character"),
        ("# flagshim baseline 2\n", "of a newer flagshim"),
        ("\xff", "not a text file in UTF-8"),
    ],
)
def test_what_is_wrong_in_a_baseline(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "b").write_bytes(text.encode("latin-1"))
    with pytest.raises(FlagshimError) as error:
        baselinefile.read(tmp_path / "b")
    assert said in str(error.value)
    result = flagshim("run", "--baseline", tmp_path / "b", "--", "touch", tmp_path / "ran")
    assert result.returncode == 125
    assert said in result.stderr
    assert not (tmp_path / "ran").exists()


def test_a_baseline_from_a_pipe(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"\xef\xbb\xbf# opens\nrewritten noatime qemu /nix/**\n")
    os.close(write_end)
    try:
        assert len(baselinefile.read(Path(f"/dev/fd/{read_end}")).entries) == 1
    finally:
        os.close(read_end)


def test_no_baseline_there(tmp_path: Path) -> None:
    result = flagshim("report", small(tmp_path / "t.db"), "--baseline", tmp_path / "no")
    assert result.returncode == 125
    assert "No such file or directory; make one with flagshim baseline" in result.stderr
    assert result.stdout == ""


# --- many paths as a few globs ----------------------------------------------------------------


def entries_for(*paths: str) -> list[Entry]:
    return [Entry(Effect.REWRITTEN, "r", "p", path) for path in paths]


def globs(*paths: str) -> list[tuple[str, int]]:
    return [(pattern.entry.path, pattern.files) for pattern in generalise(entries_for(*paths))]


def test_few_stay_themselves_and_many_become_a_glob() -> None:
    assert globs("/a/x", "/a/y[", "/b") == [("/a/x", 1), ("/a/y[[]", 1), ("/b", 1)]
    many = [f"/a/{n}" for n in range(MANY + 1)]
    assert globs(*many[:MANY], "/b/c") == sorted([(name, 1) for name in [*many[:MANY], "/b/c"]])
    assert globs(*many, "/b/c") == [("/a/*", MANY + 1), ("/b/c", 1)]
    assert globs(*many, "/a/d/e") == [("/a/*", MANY + 1), ("/a/d/e", 1)]


def test_many_folders_become_one_glob_but_never_all() -> None:
    store = [f"/nix/store/{n}/{file}" for n in range(997) for file in "ab"]
    assert globs(*store, "/etc/x") == [("/etc/x", 1), ("/nix/store/**", 1994)]
    roots = [f"/{n}/x" for n in range(101)]
    assert globs(*roots) == sorted((name, 1) for name in roots)
    two = [f"/x/{n}/{m}" for n in range(8) for m in range(5)]
    assert globs(*two) == [("/x/**", 40)]


def test_globs_match_what_they_came_from() -> None:
    dice = random.Random(7)
    names = ["a", "b[", "*", "c d", "\n", "é", "?", "(unknown)"]
    paths = sorted(
        {"/".join(["", *dice.choices(names, k=dice.randrange(1, 6)), str(dice.randrange(9))])
         for _ in range(2003)}
    )  # fmt: skip
    deep = ["/d" * 2000 + f"/{n}" for n in range(MANY + 2)]
    patterns = generalise(entries_for(*paths, *deep))
    assert len(patterns) < len(paths) / 2
    assert sum(pattern.files for pattern in patterns) == len(paths) + len(deep)
    baseline = Baseline("b", [pattern.entry for pattern in patterns])
    for path in (*paths, *deep):
        assert baseline.find(Finding(Effect.REWRITTEN, "r", "p", path, 1)) is not None, path


# --- the commands -------------------------------------------------------------------------


def test_report_fails_with_122_and_says_for_what(tmp_path: Path) -> None:
    trace = small(tmp_path / "t.db")
    plain = flagshim("report", trace).stdout
    result = flagshim("report", trace, "--fail-on", "refusals > 1", "--fail-on", "rewrites>5")
    assert (result.returncode, result.stdout) == (0, plain)
    assert result.stderr == (
        "flagshim: gate passed; 1 opens are not in the trace, see --fail-on 'lost events'\n"
    )
    result = flagshim("report", trace, "--fail-on", "refusals", "--fail-on", "lost events")
    assert (result.returncode, result.stdout) == (122, plain)
    assert "gate failed: refusals > 0 (1), lost events > 0 (1)" in result.stderr
    result = flagshim("report", trace, "--fail-on", "everything")
    assert result.returncode == 125
    assert "'everything' is not one of rewrites" in result.stderr


def test_only_what_is_new_fails_and_the_difference_is_shown(tmp_path: Path) -> None:
    old = small(tmp_path / "old.db")
    baseline = baseline_of(old)
    trace = Trace(tmp_path / "new.db")
    trace.session(seen=3)
    trace.event()
    trace.event(resolved="/new\x1b\nfile")
    trace.event(program="bash")
    trace.close()
    result = flagshim("report", trace.path, "--baseline", baseline)
    assert result.returncode == 122
    assert result.stderr.splitlines() == [
        f"flagshim: gate failed: rewrites > 0 (2), beyond {baseline}",
        r"  + rewritten  noatime  qemu-system-x86_64  /new\x1b\nfile  (1x)",
        "  + rewritten  noatime  bash  /nix/store/hello  (1x)",
        "  - refused  noatime  qemu-system-x86_64  /etc/frozen  (not this time)",
    ]
    with open(baseline, "a") as file:
        file.writelines(
            f"{line[4:].rsplit('  (', 1)[0]}\n"
            for line in result.stderr.splitlines()
            if line.startswith("  +")
        )
    again = flagshim("report", trace.path, "--baseline", baseline)
    assert again.returncode == 0
    assert "gate passed" in again.stderr
    tolerant = flagshim("report", trace.path, "--baseline", old, "--fail-on", "rewrites > 2")
    assert tolerant.returncode == 0
    assert "  + rewritten  noatime  bash" in tolerant.stderr


def test_the_difference_is_coloured_for_whom_it_may(tmp_path: Path) -> None:
    trace = small(tmp_path / "t.db")
    (tmp_path / "b").write_text("rewritten a b /c\n")
    arguments = ("report", trace, "--baseline", tmp_path / "b")
    assert "\x1b[31m  + refused" in flagshim(*arguments, "--color", "always").stderr
    for options in ((), ("--color", "never")):
        assert "\x1b" not in flagshim(*arguments, *options).stderr


@pytest.mark.parametrize("reason", [r for r in Reason if r.value.startswith("not rescued: ")])
def test_what_was_not_rescued_counts_as_refused(tmp_path: Path, reason: Reason) -> None:
    """Under the notify engine nobody knows what came of it; a file that is made is the thread's."""
    trace = Trace(tmp_path / "t.db")
    trace.session(seen=2, engine="notify")
    trace.event(**{**KEPT, "reason": reason.value, "fd": None})
    trace.event(**{**KEPT, "reason": Reason.FORESEEN.value, "fd": None})
    expected = 0 if reason is Reason.NOT_RESCUED_NEW_FILE else 1
    assert counts(trace.close(), Metric.REFUSALS) == [expected]
