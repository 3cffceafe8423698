"""docs/awkward.md names tests, and they are there."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "awkward.md").read_text()
NAMED = sorted(set(re.findall(r"`(test_\w+)::(test_\w+)`", TEXT)))
ROWS = [
    line for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith("| Case |")
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), NAMED)
def test_named_test_exists(module: str, name: str) -> None:
    (path,) = (REPOSITORY / "tests").rglob(f"{module}.py")
    functions = {node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")}
    assert name in functions


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_every_row_has_a_test_or_says_that_it_has_none(row: str) -> None:
    cells = row.strip("|").split(" | ")
    last = cells[-1].strip()
    assert re.fullmatch(r"`test_\w+::test_\w+`(, `test_\w+::test_\w+`)*", last) or (
        last == "-" and cells[-2].endswith("not tested")
    )


def test_every_difference_that_is_tested_is_in_the_table() -> None:
    source = (REPOSITORY / "tests" / "kernel" / "test_differences.py").read_text()
    functions = {node.name for node in ast.parse(source).body if hasattr(node, "name")}
    tested = {name for name in functions if name.startswith("test_")}
    assert tested <= {name for module, name in NAMED if module == "test_differences"}
