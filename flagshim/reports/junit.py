"""A trace as JUnit XML, as Jenkins, GitLab and others take it from Maven's Surefire.

A suite for the gate with a case for each condition, and one for each session with a case for
each file: it fails where the kernel refused an open, unless that is in the baseline.
"""

from itertools import islice
from typing import TextIO
from xml.etree import ElementTree

from flagshim.gates.baseline import Effect, findings
from flagshim.gates.judgement import Judgement, expected
from flagshim.reports import gate
from flagshim.reports.notes import SessionNotes
from flagshim.reports.text import command_line, exit_status, printable, shorten, utc
from flagshim.reports.view import Selection
from flagshim.trace.reader import TraceReader
from flagshim.trace.records import Opened, Session

LIMIT = 1000
"""Files of a session that get a case of their own, if nobody says how many."""
SESSIONS = 101
"""Sessions that get a suite, the newest."""
LONGEST = 4096
"""Characters of a name or a command."""
_NS = 10**9


def write(
    reader: TraceReader, selection: Selection, judgement: Judgement | None, out: TextIO
) -> None:
    """Write a document.

    Raises:
        FlagshimError: the trace is damaged.
    """
    root = ElementTree.Element("testsuites", name="flagshim")
    if judgement:
        root.append(_gate(judgement))
    notes = SessionNotes(reader)
    for session in reader.sessions(selection.since_ns, SESSIONS):
        root.append(_session(reader, selection, session, notes, judgement))
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    ElementTree.indent(root)
    out.write('<?xml version="1.0" encoding="UTF-8"?>\n')
    ElementTree.ElementTree(root).write(out, encoding="unicode")
    out.write("\n")


def _session(
    reader: TraceReader,
    selection: Selection,
    session: Session,
    notes: SessionNotes,
    judgement: Judgement | None,
) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=_text(command_line(session.command)))
    suite.append(_properties(session))
    suite.append(_complete(session, notes))
    opened = reader.opened(selection.since_ns, session.id)
    for row in islice(opened, selection.limit or LIMIT):
        suite.append(_file(row, judgement))
    if more := sum(1 for _ in opened):
        case = ElementTree.SubElement(suite, "testcase", _case_of("session", f"{more} more files"))
        ElementTree.SubElement(case, "skipped", message="--limit N has more of them")
    ended = session.started_ns if session.ended_ns is None else session.ended_ns
    return _counted(suite, max(0, ended - session.started_ns))


def _properties(session: Session) -> ElementTree.Element:
    properties = ElementTree.Element("properties")
    ended = session.ended_ns is not None
    for name, value in (
        ("session", str(session.id)),
        ("started", utc(session.started_ns)),
        ("host", session.host),
        ("flagshim", session.flagshim),
        ("engine", session.engine),
        ("kernel", session.kernel),
        ("uid", str(session.uid)),
        ("exit", exit_status(session.exit_status) if ended else "still running, or killed"),
    ):
        ElementTree.SubElement(properties, "property", name=name, value=_name(value))
    return properties


def _complete(session: Session, notes: SessionNotes) -> ElementTree.Element:
    case = ElementTree.Element("testcase", _case_of("session", "every open is in the trace"))
    missing = notes.missing(session)
    spots = notes.blind_spots(session)
    if missing:
        _problem(case, "error", "lost", f"{missing} opens are not in the trace")
    elif spots:
        text = ", ".join(f"{printable(s.program)}: {printable(s.kind)}" for s in spots[:SESSIONS])
        message = _text(f"may have opened files unseen: {text}")
        ElementTree.SubElement(case, "skipped", message=message)
    return case


def _file(opened: Opened, judgement: Judgement | None) -> ElementTree.Element:
    rule = f" ({printable(opened.rule)})" if opened.rule else ""
    name = f"{_name(opened.path) or '(empty)'}{rule}"
    case = ElementTree.Element("testcase", _case_of(_name(opened.program), name))
    for finding in findings(opened):
        if expected(judgement, finding):
            continue
        new = judgement is not None and judgement.baseline is not None
        if finding.effect is Effect.REFUSED or new:
            text = f"{'new: ' if new else ''}{finding.effect}, {finding.opens} times"
            _problem(case, "failure", finding.effect, text)
    counts = f"{opened.tally.opens} opens: {opened.rewritten} rewritten, {opened.refused} refused"
    ElementTree.SubElement(case, "system-out").text = counts
    return case


def _gate(judgement: Judgement) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name="flagshim gate")
    lines = [*gate.difference_lines(judgement.difference)] if judgement.difference else []
    for judged in judgement.judged:
        case = ElementTree.SubElement(
            suite, "testcase", _case_of("gate", f"not {judged.condition}")
        )
        if judged.failed:
            _problem(case, "failure", "gate", f"{judged.condition}: {judged.count}")
            case[0].text = "\n".join(map(_text, lines)) or None
            lines = []
    return _counted(suite, 0)


def _case_of(kind: str, name: str) -> dict[str, str]:
    return {"classname": f"flagshim.{kind}", "name": name, "time": "0"}


def _problem(case: ElementTree.Element, tag: str, kind: str, message: str) -> None:
    ElementTree.SubElement(case, tag, type=f"flagshim.{kind}", message=message)


def _counted(suite: ElementTree.Element, ns: int) -> ElementTree.Element:
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    suite.set("time", f"{ns / _NS:.3f}")
    return suite


def _name(name: str | bytes | None) -> str:
    return _text(printable(name))


def _text(text: str) -> str:
    return shorten(text, LONGEST)
