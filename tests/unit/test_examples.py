from pathlib import Path

import pytest

from flagshim.rules import load_rules
from tests.support import REPOSITORY

RULE_FILES = sorted((REPOSITORY / "examples").glob("*.toml"))


def test_there_are_examples() -> None:
    assert RULE_FILES


@pytest.mark.parametrize("file", RULE_FILES, ids=lambda file: file.name)
def test_rule_files_load(file: Path) -> None:
    assert all(rule.name for rule in load_rules(file))
    assert f"--rules examples/{file.name} -- " in file.read_text()
