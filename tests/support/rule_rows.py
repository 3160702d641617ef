"""Where every rule has a row, and the sentence that says which row is missing where. CONTRIBUTING.md walks through them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator

import fastdecode as fd
from fastdecode import rules
from tests import ROOT
from tests.support import cases, pages, transcriptions

Maker = Callable[..., fd.Rule]
Range = tuple[str, tuple, tuple]  # as in tests/core/test_rules.py


def public_rules() -> dict[str, Maker]:
    """The functions of rules.py that make a rule, listed or not."""
    return {
        name: made
        for name, made in vars(rules).items()
        if inspect.isfunction(made)
        and made.__module__ == rules.__name__
        and not name.startswith("_")
        and made.__annotations__.get("return") == "Rule"
    }


def readme_row(name: str) -> list[str] | None:
    """The cells of a rule's row in the README's table."""
    rows = pages.table_rows((ROOT / "README.md").read_text(encoding="utf-8"), "The rules")
    return next((row for row in rows if row[0].startswith(f"`{name}(")), None)


def section(name: str) -> str | None:
    """A rule's section of docs/rules.md."""
    text = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found and found.group(1)


def missing(name: str, rule: Maker, ranges: dict[Maker, Range]) -> Iterator[str]:
    """A sentence for each row that the rule still needs."""
    if rule not in rules.RULES:
        yield f"{name} is not listed: add it to the end of RULES in fastdecode/rules.py."
    if not inspect.getdoc(rule):
        yield f"{name} says nothing of itself: give it a docstring in fastdecode/rules.py; the command line prints its first line."
    if getattr(fd, name, None) is not rule:
        yield f"fastdecode.{name} does not exist: add {name} to the import from .rules in fastdecode/__init__.py."
    if name not in fd.__all__:
        yield f"{name} is not public: add {name!r} to __all__ in fastdecode/__init__.py."
    if not any(row.rule is rule for row in cases.ROWS):
        yield f"{name} is run by no engine's test: add RuleRow(fd.{name}, (tight, typical, loose)) to ROWS in tests/support/cases.py."
    if rule is not rules.temperature and name not in transcriptions.BY_NAME:
        yield f"nobody but its cut says what {name} keeps: add its definition, and its name to BY_NAME, in tests/support/transcriptions.py."
    if inspect.signature(rule).parameters and rule not in ranges:
        yield f"nobody says what {name} refuses: add fd.{name}: (interval, inside, outside) to RANGES in tests/core/test_rules.py."
    if readme_row(name) is None:
        yield f"the README does not name {name}: add a row `{name}(parameter)` to the table under 'The rules' in README.md."
    if section(name) is None:
        yield f"{name} is not explained: add a section '## {name}' after the other rules in docs/rules.md."
