"""Formats for other programs: do they take them, whatever a guest calls its files?"""

import base64
import json
import os
import re
import sqlite3
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
import xmlschema
from junit2htmlreport import parser as junit_viewer

from tests.support import REPOSITORY
from tests.unit.reportrunner import run
from tests.unit.test_gates import flagshim
from tests.unit.test_report_cli import nasty
from tests.unit.tracebuilder import KEPT, OPEN, START, STILL_REFUSED, Trace, small

EVIL = [
    "<script>alert(1)</script>",
    "]]>",
    "&amp;",
    "--><b>",
    "a\u2028b\u2029c",
    "::error::x",
    "##[error]x",
    "a\r\n::set-output name=x::y",
    "%0A::warning::x",
    "`a` | ``b` |",
    "|",
    "`",
    "",
    "\\",
    "@everyone",
    "\ufffe\x00",
    "{{data}}",
]


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    trace = Trace(tmp_path / "evil.db")
    trace.session(seen=1009, command=json.dumps(EVIL), cwd=EVIL[0], host=EVIL[0])
    for number, name in enumerate(EVIL):
        how = (STILL_REFUSED, {}, KEPT)[number % 3]
        trace.event(time_ns=START + number, resolved=f"/{name}", program=name or "p", **how)
    trace.blind_spot("io_uring", EVIL[0], 1)
    return trace.close()


def gated(trace: Path, format_: str, *options: str, **environment: str) -> str:
    baseline = trace.with_suffix(".baseline")
    baseline.write_text("rewritten noatime qemu-system-x86_64 /gone/<b>/**\n")
    arguments = ("report", trace, "--format", format_, "--baseline", baseline, *options)
    result = flagshim(*arguments, **environment)
    assert result.returncode == 122, result.stderr
    return result.stdout


# --- JSON ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    document = json.loads((REPOSITORY / "docs/report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


@pytest.mark.parametrize("view", ["summary", "events", "paths", "programs"])
def test_json_is_as_its_schema_says(
    tmp_path: Path, evil: Path, schema: jsonschema.Draft202012Validator, view: str
) -> None:
    empty = Trace(tmp_path / "empty.db").close()
    running = Trace(tmp_path / "running.db")
    running.session(ended_ns=None, exit_status=None)
    running.db.execute("INSERT INTO trouble VALUES (1, 7, 'something')")
    for trace in (empty, running.close(), small(tmp_path / "s"), nasty(tmp_path / "n"), evil):
        schema.validate(json.loads(run(trace, "--format", "json", "--view", view)))
    document = json.loads(gated(evil, "json", "--view", view))
    schema.validate(document)
    assert document["gate"]["difference"]["new"]
    assert document["gate"]["difference"]["gone"]


def test_the_schema_knows_every_member_and_refuses_what_is_not(
    tmp_path: Path, schema: jsonschema.Draft202012Validator
) -> None:
    def strict(part: object) -> object:
        """The schema with new members forbidden: those of today are all described."""
        if isinstance(part, dict):
            part = {key: strict(value) for key, value in part.items()}
            if part.get("type") == "object" and "allOf" not in part:
                part.setdefault("unevaluatedProperties", False)
        return [strict(item) for item in part] if isinstance(part, list) else part

    document = strict(schema.schema)
    document["$defs"]["tally"].pop("unevaluatedProperties")
    for view in ("summary", "events", "paths", "programs"):
        report = json.loads(run(small(tmp_path / view), "--format", "json", "--view", view))
        jsonschema.Draft202012Validator(document).validate(report)
        key = "sessions" if view == "summary" else view
        for member in list(report[key][0]):
            broken = json.loads(json.dumps(report))
            del broken[key][0][member]
            assert not schema.is_valid(broken), member
    assert not schema.is_valid({**report, "version": 2})


def test_json_of_a_gate(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.event(resolved=b"/\xff")
    trace.event(**STILL_REFUSED)
    gate = json.loads(gated(trace.close(), "json"))["gate"]
    assert gate["failed"]
    assert [c["count"] for c in gate["conditions"]] == [2, 1, 1]
    difference = gate["difference"]
    assert [base64.b64decode(row["path"]["bytes"]) if isinstance(row["path"], dict)
            else row["path"] for row in difference["new"]] == [OPEN.resolved, b"/\xff"]  # fmt: skip
    assert difference["gone"] == [
        {"effect": "rewritten", "rule": "noatime", "program": "qemu-system-x86_64",
         "path": "/gone/<b>/**"},
    ]  # fmt: skip
    assert "gate" not in json.loads(run(trace.path, "--format", "json"))


# --- JUnit ----------------------------------------------------------------------------------


def junit(text: str) -> ElementTree.Element:
    xmlschema.XMLSchema(REPOSITORY / "tests/unit/schemas/junit.xsd").validate(text)
    return ElementTree.fromstring(text.encode())


def test_junit_is_valid_whatever_is_in_it(tmp_path: Path, evil: Path) -> None:
    for trace in (Trace(tmp_path / "e").close(), nasty(tmp_path / "n"), evil):
        junit(run(trace, "--format", "junit"))
    junit(gated(evil, "junit"))


def test_junit_cases(tmp_path: Path) -> None:
    (suite,) = junit(run(small(tmp_path / "t.db"), "--format", "junit"))
    assert suite.get("name") == "qemu-system-x86_64 -m '2 G'"
    assert [suite.get(n) for n in ("tests", "failures", "errors", "skipped", "time")] == [
        "4", "1", "1", "0", "5.000",
    ]  # fmt: skip
    found = {case.get("name"): [part.tag for part in case] for case in suite.iter("testcase")}
    assert found == {
        "every open is in the trace": ["error"],
        "/etc/frozen (noatime)": ["failure", "system-out"],
        "/nix/store/hello (noatime)": ["system-out"],
        "gone (noatime)": ["system-out"],
    }


def test_junit_with_a_baseline_fails_for_what_is_new_only(tmp_path: Path) -> None:
    trace = small(tmp_path / "t.db")
    gate, session = junit(gated(trace, "junit"))
    assert [(case.get("name"), case[0].get("message")) for case in gate] == [
        ("not rewrites > 0", "rewrites > 0: 2"),
        ("not refusals > 0", "refusals > 0: 1"),
        ("not failed after rewrite > 0", "failed after rewrite > 0: 1"),
    ]
    assert "+ refused  noatime  qemu-system-x86_64  /etc/frozen" in gate[0][0].text
    assert session.get("failures") == "2"
    baseline = tmp_path / "b"
    baseline.write_text(flagshim("baseline", trace).stdout)
    passed = flagshim("report", trace, "--format", "junit", "--baseline", baseline)
    assert passed.returncode == 0
    gate, session = junit(passed.stdout)
    assert (gate.get("failures"), session.get("failures")) == ("0", "0")


def test_junit_is_bounded(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.events(OPEN._replace(resolved=f"/{n}") for n in range(1009))
    (suite,) = junit(run(trace.close(), "--format", "junit"))
    assert len(suite.findall("testcase")) == 1002
    assert suite.findall("testcase")[-1].get("name") == "9 more files"
    (suite,) = junit(run(trace.path, "--format", "junit", "--limit", "7"))
    assert suite.findall("testcase")[-1].get("name") == "1002 more files"


def test_a_viewer_shows_it(evil: Path) -> None:
    file = evil.with_suffix(".xml")
    file.write_text(gated(evil, "junit"))
    report = junit_viewer.Junit(os.fspath(file))
    gate, session = report.suites
    assert [case.failed() for case in gate.all()] == [True, True, True]
    refused = [case for case in session.all() if case.failed()]
    assert len(refused) == 1 + sum(number % 3 != 2 for number in range(len(EVIL)))
    page = report.html()
    assert "rewrites &gt; 0" in page
    assert "<script>alert" not in page


# --- Markdown and GitHub ----------------------------------------------------------------------


def test_markdown_summary(tmp_path: Path) -> None:
    text = run(small(tmp_path / "t.db"), "--format", "markdown")
    assert "| 1         | `qemu-system-x86_64 -m '2 G'` | 0      | 5.000 s |" in text
    assert re.search(r"^\| 2 +\| 1 +\| 0 +\| 1 +\| 0 +\| `/nix/store/hello` +\|$", text, re.M)


@pytest.mark.parametrize("view", ["summary", "events", "paths", "programs"])
def test_markdown_tables_keep_their_columns(evil: Path, view: str) -> None:
    text = gated(evil, "markdown", "--view", view)
    assert text.replace("\n", "").isprintable()
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    assert tables
    for table in tables:
        bars = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table.splitlines()]
        assert len(set(bars)) == 1, table
    for line in text.splitlines():
        if line.startswith("|"):
            # What is left outside of code spans is flagshim's own.
            rest = re.sub(r"(?<!`)(`+)(?!`)(.*?)(?<!`)\1(?!`)", "", line)
            assert not re.search(r"[<&@#:`]", rest.replace("|:", "").replace("-:", "")) or (
                view == "events" and re.fullmatch(r"[^<&@#`]*", rest)
            ), rest
        else:
            assert line.startswith("    ") or not re.search(r"[<&@]", line)


def test_a_code_span_holds_any_name() -> None:
    from flagshim.reports.markdown import code

    assert code("a") == "`a`"
    assert code("a`b``c") == "```a`b``c```"
    assert code("`") == "`` ` ``"
    assert code("a|b") == "`a\\|b`"
    assert code("a\\|b") == "`a\\\\\\|b`"
    assert code("") == "(empty)"
    assert code(None) == "`(unknown)`"
    assert len(code("x" * 9999)) == 202


COMMAND = re.compile(r"::(error|warning|notice) title=[^:,]*::[^\r\n]*")


def test_github_annotations_and_step_summary(tmp_path: Path, evil: Path) -> None:
    summary = tmp_path / "summary"
    summary.write_text("before\n")
    out = gated(evil, "github", GITHUB_STEP_SUMMARY=str(summary))
    lines = out.split("\n")[:-1]
    assert all(COMMAND.fullmatch(line) for line in lines), out
    levels = [line.split()[0] for line in lines]
    assert levels.count("::error") == 3 + len(range(0, len(EVIL), 3))
    assert "::error title=flagshim%3A gate::rewrites > 0: 12 beyond" in lines[0]
    assert summary.read_text() == "before\n" + gated(evil, "markdown")
    assert len(summary.read_bytes()) < 1 << 20


def test_github_takes_a_percent_sign_for_itself(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.event(resolved="/%0A::error::x")
    out = flagshim("report", trace.close(), "--format", "github", GITHUB_STEP_SUMMARY="").stdout
    assert " opened /%250A::error::x (1x)" in out


def test_github_shows_ten_of_a_level_and_counts_the_rest(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.db")
    trace.session()
    for files in (9, 10, 11, 23):
        trace.db.execute("DELETE FROM event")
        trace.events(OPEN._replace(resolved=f"/{n}") for n in range(files))
        out = flagshim("report", trace.path, "--format", "github", GITHUB_STEP_SUMMARY="").stdout
        assert out.count("::notice") == min(files, 10)
        more = re.findall(r"::(\d+) more; flagshim report shows them", out)
        assert more == ([] if files <= 10 else [str(files - 9)])


def test_github_step_summary_that_cannot_be_written(tmp_path: Path) -> None:
    trace = small(tmp_path / "t.db")
    result = flagshim("report", trace, "--format", "github", GITHUB_STEP_SUMMARY="/no/such/file")
    assert result.returncode == 125
    assert "GITHUB_STEP_SUMMARY /no/such/file: No such file or directory" in result.stderr


def test_a_step_summary_fits_however_long_the_names_are(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.db")
    trace.session(command=json.dumps(["\x1b" * 100_000]))
    trace.events(
        OPEN._replace(resolved=f"/{n}" + "/\x1b" * 2000, program="\x1b" * 255) for n in range(211)
    )
    assert len(gated(trace.close(), "markdown")) < 1 << 20


# --- GitLab -----------------------------------------------------------------------------------


def test_gitlab_issues(tmp_path: Path, evil: Path) -> None:
    text = gated(evil, "gitlab", CI_PROJECT_DIR="/nowhere")
    assert text.isascii()
    issues = json.loads(text)
    assert len({issue["fingerprint"] for issue in issues}) == len(issues)
    for issue in issues:
        assert set(issue) == {
            "type", "description", "check_name", "categories", "severity", "fingerprint",
            "location",
        }  # fmt: skip
        assert issue["severity"] in ("info", "minor", "major", "critical", "blocker")
        assert issue["description"].isprintable()
        assert re.fullmatch("[0-9a-f]{64}", issue["fingerprint"])
        path = issue["location"]["path"]
        assert path
        assert not path.startswith(("/", "./"))
        assert issue["location"]["lines"] == {"begin": 1}
    assert [issue["severity"] for issue in issues[:3]] == ["blocker"] * 3
    assert json.loads(run(Trace(tmp_path / "e").close(), "--format", "gitlab")) == []


def test_gitlab_knows_an_issue_again_and_where_its_file_is(tmp_path: Path) -> None:
    def issues(opens: int) -> list[dict[str, object]]:
        trace = Trace(tmp_path / f"{opens}.db")
        trace.session()
        trace.events([OPEN._replace(resolved="/builds/p/share/f")] * opens)
        environment = {"CI_PROJECT_DIR": "/builds/p"}
        arguments = ("report", trace.close(), "--format", "gitlab")
        return json.loads(flagshim(*arguments, **environment).stdout)

    (one,), (two,) = issues(1), issues(2)
    assert one["fingerprint"] == two["fingerprint"]
    assert one["location"] == {"path": "share/f", "lines": {"begin": 1}}
    assert one["severity"] == "info"
    assert one["description"] == (
        "qemu-system-x86_64 opened /builds/p/share/f (1x): made without a flag (rule noatime)"
    )


# --- all --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["junit", "github", "gitlab", "html"])
def test_a_view_is_for_other_formats(tmp_path: Path, format_: str) -> None:
    trace = small(tmp_path / "t.db")
    result = flagshim("report", trace, "--format", format_, "--view", "paths")
    assert result.returncode == 125
    assert f"--view with --format {format_}" in result.stderr


@pytest.mark.parametrize("format_", ["markdown", "junit", "github", "gitlab", "html", "json"])
def test_damage_is_said_in_every_format(tmp_path: Path, format_: str) -> None:
    trace = small(tmp_path / "t.db")
    database = sqlite3.connect(trace)
    database.execute("UPDATE session SET rules = 'x'")
    database.commit()
    database.close()
    result = flagshim("report", trace, "--format", format_, GITHUB_STEP_SUMMARY="")
    assert result.returncode == 125
    assert "damaged" in result.stderr
    assert "Traceback" not in result.stderr
