"""A rule that lacks a row somewhere is told which one, in one sentence for each."""

from __future__ import annotations

import pytest

import fastdecode as fd
from tests.core.test_rules import RANGES
from tests.support import rule_rows


@pytest.mark.parametrize("name", rule_rows.public_rules())
def test_a_rule_has_all_its_rows(name):
    lacking = list(rule_rows.missing(name, rule_rows.public_rules()[name], RANGES))
    assert not lacking, "\n" + "\n".join(lacking)


def test_every_row_that_lacks_is_named_with_its_file():
    def unheard_of(n: float) -> fd.Rule: ...

    told = list(rule_rows.missing("unheard_of", unheard_of, RANGES))
    files = [
        "fastdecode/rules.py", "fastdecode/rules.py", "fastdecode/__init__.py", "fastdecode/__init__.py", "tests/support/cases.py",
        "tests/support/transcriptions.py", "tests/core/test_rules.py", "README.md", "docs/rules.md",
    ]  # fmt: skip
    assert len(told) == len(files) and all(file in sentence for file, sentence in zip(files, told))
    assert all("unheard_of" in sentence and sentence.endswith(".") for sentence in told)


def test_no_row_speaks_of_a_rule_that_is_not_there():
    names = set(rule_rows.public_rules())
    assert {row.rule.__name__ for row in rule_rows.cases.ROWS} <= names and {rule.__name__ for rule in RANGES} <= names
    assert {name.partition("[")[0] for name in rule_rows.transcriptions.BY_NAME} <= names
