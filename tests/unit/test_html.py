"""The HTML report in a real browser: what it shows, what it does, what it must not do."""

import json
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from flagshim.reports import html, pathtree
from tests.support import REPOSITORY, flagshim_command, require
from tests.unit.browser import chromium, obstacle, opened
from tests.unit.reportrunner import run
from tests.unit.test_formats import EVIL
from tests.unit.test_gates import flagshim
from tests.unit.test_report_cli import NASTY
from tests.unit.tracebuilder import (
    FAILED,
    KEPT,
    OPEN,
    SECOND,
    START,
    STILL_REFUSED,
    Trace,
    small,
)

TO_THE_END = """() => {
    const holder = document.querySelector("#events .tabulator-tableholder");
    holder.scrollTop = holder.scrollHeight;
}"""
STARTS = """([row, text]) => [...document.querySelectorAll(`#events ${row} [tabulator-field=path]`)]
    .some((cell) => cell.textContent.startsWith(text))"""
ROWS = "#events .tabulator-row"
HOSTILE = [
    *EVIL,
    *NASTY,
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "<!--<script>",
    "' onmouseover=alert(3) x='",
    "javascript:alert(4)",
    "<a href=http://127.0.0.1:9/>x</a>",
    "<link rel=stylesheet href=http://127.0.0.1:9/>",
    "<style>*{background:url(http://127.0.0.1:9/)}</style>",
    "\u202e\u2066gpj.exe\u2069",
    "__proto__",
    "constructor",
    "…more",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    require("chromium", obstacle())
    with chromium() as started:
        yield started


def page_of(trace: Path, *options: object) -> Path:
    file = trace.with_suffix(".html")
    result = flagshim("report", trace, "--format", "html", *options)
    assert result.returncode in (0, 122), result.stderr
    file.write_text(result.stdout)
    return file


def many(path: Path, count: int) -> Path:
    """A trace of `count` opens, a millisecond apart; every 997th is refused, every 7th kept."""
    trace = Trace(path)
    trace.session(seen=count)
    kept, refused = OPEN._replace(**KEPT), OPEN._replace(**STILL_REFUSED)
    trace.events(
        (refused if n % 997 == 0 else kept if n % 7 == 0 else OPEN)._replace(
            time_ns=START + n * 10**6, resolved=f"/srv/{n % 101}/file {n:07}", pid=n % 11
        )
        for n in range(count)
    )
    return trace.close()


REFUSED = {False: (198, 47, 75), True: (255, 114, 137)}
"""--refused of page.css, light and dark."""


def columns(page: Page, color: tuple[int, int, int]) -> list[int]:
    """In how many columns of the timeline a colour is, how many there are, and the first."""
    return page.evaluate(
        """(wanted) => {
            const canvas = document.querySelector("#timeline canvas");
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            const found = new Set();
            for (let i = 0; i < data.length; i += 4)
              if (wanted.every((part, at) => data[i + at] === part)) found.add(i / 4 % width);
            return [found.size, width, Math.min(...found)];
        }""",
        list(color),
    )


def matches(page: Page, text: str) -> None:
    page.wait_for_function("text => document.querySelector('#matches').textContent === text",
                           arg=text)  # fmt: skip


def first_cells(page: Page, field: str) -> list[str]:
    return page.locator(f"{ROWS} [tabulator-field={field}]").all_text_contents()


# --- what it shows ----------------------------------------------------------------------


def test_sums_gate_and_sessions(tmp_path: Path, browser: Browser) -> None:
    baseline = tmp_path / "b"
    baseline.write_text("rewritten noatime qemu-system-x86_64 /nix/**\nrefused - - /gone\n")
    trace = small(tmp_path / "t.db")
    with opened(browser, page_of(trace, "--baseline", baseline)) as seen:
        page = seen.page
        assert page.locator(".tile b").all_text_contents() == ["4", "1", "1", "1", "1"]
        assert "gate failed: rewrites > 0 (1), refusals > 0 (1)" in page.inner_text("#verdict")
        assert page.inner_text("#difference").splitlines() == [
            "+ refused  noatime  qemu-system-x86_64  /etc/frozen  (1x)",
            "- refused  -  -  /gone  (not this time)",
        ]
        assert "1 opens were seen but are not in the trace" in page.inner_text("#gaps")
        assert "qemu-system-x86_64 -m '2 G'" in page.inner_text("#sessions summary")
        assert page.title() == f"flagshim: {trace}"
        matches(page, "4 of 4")
        assert first_cells(page, "path") == [
            "/nix/store/hello", "/nix/store/hello", "/etc/frozen", "gone",
        ]  # fmt: skip
        assert first_cells(page, "time_us")[0] == "2023-11-15 03:43:20.000"
        assert not seen.complaints
        assert seen.requests == [page.url]


def test_an_empty_trace(tmp_path: Path, browser: Browser) -> None:
    with opened(browser, page_of(Trace(tmp_path / "t.db").close())) as seen:
        assert seen.page.locator(".tile b").all_text_contents() == ["0"] * 5
        assert seen.page.inner_text("#timeline") == "No open."
        assert not seen.complaints


def test_timeline_draws_and_a_drag_sifts(tmp_path: Path, browser: Browser) -> None:
    trace = Trace(tmp_path / "t.db")
    trace.session()
    for second, how in ((0, {}), (50, STILL_REFUSED), (100, KEPT)):
        trace.events(OPEN._replace(time_ns=START + second * SECOND, **how) for _ in range(5))
    with opened(browser, page_of(trace.close())) as seen:
        page = seen.page
        refused = columns(page, REFUSED[False])
        assert 0 < refused[0] < refused[1] / 50
        assert 0.4 < refused[2] / refused[1] < 0.6
        box = page.locator("#timeline .u-over").bounding_box()
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + 0.3 * box["width"], middle)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.7 * box["width"], middle, steps=5)
        page.mouse.up()
        matches(page, "5 of 15")
        assert set(first_cells(page, "effect")) == {"refused"}
        page.click("#anytime")
        matches(page, "15 of 15")


def test_tree_has_the_sums_and_leads_to_the_opens(tmp_path: Path, browser: Browser) -> None:
    trace = Trace(tmp_path / "t.db")
    trace.session()
    for name, number in (("/srv/a/x", 2), ("/srv/a/y", 3), ("/srv/b c/z", 5), ("/etc/p", 1)):
        trace.events([OPEN._replace(resolved=name)] * number)
    trace.event(resolved="/etc/q", **STILL_REFUSED)
    with opened(browser, page_of(trace.close())) as seen:
        page = seen.page

        def tree() -> list[str]:
            rows = page.locator("#paths .tabulator-row")
            return [
                f"{row.locator('[tabulator-field=name]').inner_text().strip()} "
                f"{row.locator('[tabulator-field=opens]').last.inner_text()}"
                for row in rows.all()
            ]

        assert tree() == ["/etc 2", "/q 1", "/p 1", "/srv 10", "/a 5", "/b c/z 5"]
        page.locator("#paths .tabulator-row", has_text="/a").first.locator(
            ".tabulator-data-tree-control"
        ).click()
        page.wait_for_function(
            "() => document.querySelectorAll('#paths .tabulator-row').length === 8"
        )
        page.locator("#paths .tabulator-row", has_text="/b c/z").click()
        assert page.input_value("#search") == "/srv/b c/z"
        matches(page, "5 of 12")


def test_detail_of_an_open(tmp_path: Path, browser: Browser) -> None:
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.event(path="asked", resolved="/opened", owner_uid=7, fsuid=None)
    with opened(browser, page_of(trace.close())) as seen:
        seen.page.locator(ROWS).first.click()
        text = seen.page.inner_text("#detail")
    for part in ("asked", "/opened", "thread 4243", "refused by the kernel", "asked 2 times",
                 "not looked at", "\n7\n"):  # fmt: skip
        assert part in text, part


# --- dark and light -----------------------------------------------------------------------


def test_dark_and_light(tmp_path: Path, browser: Browser) -> None:
    def brightness(page: Page, selector: str, what: str) -> float:
        color = page.eval_on_selector(selector, f"e => getComputedStyle(e).{what}")
        return sum(map(float, re.findall(r"[0-9.]+", color)[:3])) / 765

    file = page_of(small(tmp_path / "t.db"))
    places = ("body", ".tile", ROWS, "#paths .tabulator-row", "#events .tabulator-header")
    for scheme, dark in (("light", False), ("dark", True)):
        with opened(browser, file, scheme) as seen:
            for turn in (dark, not dark):
                for place in places:
                    back = brightness(seen.page, place, "backgroundColor")
                    fore = brightness(seen.page, place, "color")
                    assert (back < fore) == turn, (scheme, place, back, fore)
                    assert abs(back - fore) > 0.6, (scheme, place)
                tones = {tone: columns(seen.page, tone)[0] for tone in REFUSED.values()}
                assert (tones[REFUSED[turn]] > 0, tones[REFUSED[not turn]]) == (True, 0)
                seen.page.click("#theme")


# --- hostile names ------------------------------------------------------------------------


def test_no_name_becomes_anything_but_text(tmp_path: Path, browser: Browser) -> None:
    trace = Trace(tmp_path / "t.db")
    text = [name for name in HOSTILE if isinstance(name, str)]
    trace.session(command=json.dumps(text), cwd=text[0], host=text[0], kernel=text[0])
    for number, name in enumerate(HOSTILE):
        path = b"/" + name if isinstance(name, bytes) else None if name is None else f"/{name}"
        trace.event(time_ns=START + number, resolved=path, path=name, program=name or "none",
                    rule="<b>rule</b>", errno=name if number % 2 and name in text else None,
                    syscall="<i>openat</i>", reason=text[0])  # fmt: skip
    trace.blind_spot(text[0], text[-4], 1)
    trace.db.execute("INSERT INTO trouble VALUES (1, 1, ?)", (text[0],))
    baseline = tmp_path / "b"
    baseline.write_text("rewritten <b> <i> /<script>alert(9)</script>\n")
    file = page_of(trace.close(), "--baseline", baseline)
    source = file.read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', source, re.S)[1]
    assert not re.search(r"[<>&\u2028\u2029\u202e]", data)
    json.loads(data)
    with opened(browser, file) as seen:
        page = seen.page
        matches(page, f"{len(HOSTILE)} of {len(HOSTILE)}")
        page.locator(ROWS).first.click()
        for name in ("alert(1)", "script", "\\u202e"):
            page.fill("#search", name)
            page.wait_for_function(
                "!document.querySelector('#matches').textContent.startsWith('0')"
            )
        # What a name may have become: only the page's own elements are there.
        foreign = page.evaluate("""() => [...document.querySelectorAll(
            "script, style, link, img, a, b, iframe, [onerror]"
            .split(", ").map((tag) => `main ${tag}`))]
            .filter((e) => !e.closest(".tile")).map((e) => e.outerHTML)""")
        assert foreign == []
        shown = page.inner_text("body")
        assert not re.search("[\u202e\u2066\u2028\x1b\x07]", shown)
        assert "\\u202e" in shown
        assert "<script>alert(9)</script>" in shown
        assert not seen.complaints
        assert seen.requests == [page.url]


def test_the_policy_stops_what_is_not_the_page_s_own(tmp_path: Path, browser: Browser) -> None:
    file = page_of(small(tmp_path / "t.db"))
    text = file.read_text()
    evil = "<script>window.got = 1</script><img src=http://127.0.0.1:9/x onerror='window.got = 2'>"
    file.write_text(text.replace("<main>", f"<main>{evil}"))
    with opened(browser, file) as seen:
        assert seen.page.evaluate("window.got") is None
        assert len(seen.complaints) >= 2
        assert all("Content Security Policy" in said for said in seen.complaints)


# --- many events ----------------------------------------------------------------------------


def test_a_hundred_thousand_opens_can_be_worked_with(tmp_path: Path, browser: Browser) -> None:
    count = 100_003
    with opened(browser, page_of(many(tmp_path / "t.db", count))) as seen:
        page = seen.page
        assert "100,000 of 100,003 opens are in this page" in page.inner_text("#shown")
        matches(page, "100,000 of 100,000")
        assert 10 < page.locator(ROWS).count() < 200, "only what is in view is laid out"

        page.fill("#search", "file 0099999")
        matches(page, "1 of 100,000")
        assert first_cells(page, "path") == ["/srv/9/file 0099999"]
        page.fill("#search", "")
        matches(page, "100,000 of 100,000")

        for effect in ("rewritten", "kept"):
            page.click(f"#effects button.{effect}")
        refused = len(range(0, count, 997))
        matches(page, f"{refused} of 100,000")
        assert set(first_cells(page, "result")) == {"EPERM"}
        for effect in ("rewritten", "kept"):
            page.click(f"#effects button.{effect}")
        matches(page, "100,000 of 100,000")

        for first, last in (("/srv/0/", "/srv/99/"), ("/srv/99/", "/srv/0/")):
            page.click("#events .tabulator-col[tabulator-field=path] .tabulator-col-title")
            page.wait_for_function(STARTS, arg=[".tabulator-row", first])
            page.evaluate(TO_THE_END)
            page.wait_for_function(STARTS, arg=[".tabulator-row:last-child", last])
            page.evaluate(TO_THE_END.replace("holder.scrollHeight", "0"))
        assert not seen.complaints


def test_refused_ones_go_into_the_page_before_others(tmp_path: Path) -> None:
    text = run(many(tmp_path / "t.db", 5003), "--format", "html", "--limit", "503")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    events = data["events"]
    names, columns = events["names"], events["columns"]
    assert (events["count"], events["shown"]) == (5003, 503)
    assert [names[at] for at in columns["effect"]].count("refused") == 6
    assert columns["time_us"] == sorted(columns["time_us"])
    assert columns["time_us"][-1] == 5_002_000
    assert sum(span[1] + span[2] + span[3] + span[4] for span in data["timeline"]["spans"]) == 5003
    assert len(data["timeline"]["spans"]) <= html.BINS


def test_the_tree_is_bounded_and_its_sums_are_right(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pathtree, "NODES", 101)
    trace = Trace(tmp_path / "t.db")
    trace.session()
    effects = ({}, STILL_REFUSED, KEPT, FAILED, {**FAILED, "errno": "EACCES"})
    trace.events(
        OPEN._replace(resolved=f"/{n % 7}/{n % 211}/{n}", **effects[n % 5]) for n in range(2003)
    )
    trace.event(resolved="/d" * 2000)
    text = run(trace.close(), "--format", "html")
    rows = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])["paths"]

    def nodes(rows: list) -> int:
        total = 0
        for row in rows:
            if row[6]:
                assert [
                    sum(column) for column in zip(*(r[1:6] for r in row[6]), strict=True)
                ] == row[1:6]
            total += 1 + nodes(row[6])
        return total

    assert nodes(rows) < 250
    assert [sum(column) for column in zip(*(row[1:6] for row in rows), strict=True)] == [
        2004, 402, 401 + 400, 400, 401,
    ]  # fmt: skip


# --- manners ------------------------------------------------------------------------------


def test_html_on_a_terminal_is_refused(tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    result = subprocess.run(
        [*flagshim_command(), "report", str(small(tmp_path / "t.db")), "--format", "html"],
        stdout=terminal, stderr=subprocess.PIPE, text=True, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    assert result.returncode == 125
    assert "redirect it to a file" in result.stderr
    import os

    os.close(main)
    os.close(terminal)


def test_scripts_in_the_page_cannot_end_their_element() -> None:
    for name in html._SCRIPTS:
        assert "</script" not in html._part(name).lower()
        assert "<!--" not in html._part(name)
