"""The README is run: its code, its commands, and its tables against what they describe."""

from __future__ import annotations

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
from tests.support import pages, tiny_model

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = pages.blocks(README, "python")
COMMANDS = pages.commands(README)


def test_there_are_four_examples():
    assert len(PYTHON) == 4  # each has its test below


def test_the_loop_runs(capsys):
    names: dict = {}
    exec(PYTHON[0], names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5 and all("entropy" in line for line in printed)
    survivors = (names["masked"] > -float("inf")).sum(1)
    assert survivors.tolist() == names["s"].kept.tolist() and (survivors > 1).all()


def test_the_hugging_face_example_runs(capsys, tmp_path, monkeypatch):
    import transformers

    folder = tiny_model.save(tmp_path)  # stands for the model that the example names
    for kind in (transformers.AutoTokenizer, transformers.AutoModelForCausalLM):
        read = kind.from_pretrained
        monkeypatch.setattr(kind, "from_pretrained", lambda name, read=read: read(folder))
    names: dict = {}
    exec(PYTHON[1], names)
    own = names["output"].shape[1] - names["inputs"]["input_ids"].shape[1]
    assert own > 0 and torch.equal(names["output"], names["same"])
    assert capsys.readouterr().out.strip()

    monkeypatch.chdir(tmp_path)
    exec(PYTHON[3], names)  # goes on with that model
    assert len(names["made"]) == 12 and len((tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()) == 12
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_soft_tokens_run(capsys):
    names: dict = {}
    exec(PYTHON[2], names)
    assert "tensor" in capsys.readouterr().out
    assert names["soft"].ids.shape == (2, 5) and names["table"].weight.grad.abs().max() > 0


def test_the_defaults_of_soft_thinking_are_those_of_the_text():
    given = inspect.signature(fd.hf.soft_thinking).parameters
    text = " ".join(README.split())
    assert (
        f"after {given['patience'].default} steps on end with an entropy below {given['cold_stop'].default} nats"
        in text
    )
    named = re.findall(r'^\| `"(\w+)"` \|', README, re.MULTILINE)
    assert named == list(fd.soft.NOISES)


def test_the_commands_parse():
    runs = [shlex.split(line.split("-m fastdecode", 1)[1]) for line in COMMANDS if "-m fastdecode" in line]
    assert len(runs) == 7
    for arguments in runs:
        if "--help" not in arguments:
            cli._parser().parse_args(arguments)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    assert named and set(named) <= set(targets)


def test_the_table_names_exactly_the_rules():
    named = [re.match(r"`(\w+)\(", row[0]).group(1) for row in pages.table_rows(README, "The rules")]
    assert named == [rule.__name__ for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_table_gives_the_parameter_and_the_source_of_the_docstring(rule):
    row = next(row for row in pages.table_rows(README, "The rules") if row[0].startswith(f"`{rule.__name__}("))
    first = next(iter(inspect.signature(rule).parameters), "")
    assert row[0] == f"`{rule.__name__}({first})`"
    assert re.findall(r"arXiv [\d.]+\d", row[2]) == re.findall(r"arXiv [\d.]+\d", inspect.getdoc(rule))


def test_the_environment_variables_are_those_that_are_read():
    documented = set(re.findall(r"`(FASTDECODE_\w+)`", README))
    read_here = set(re.findall(r"FASTDECODE_\w+", inspect.getsource(dispatch)))
    read_here |= set(re.findall(r"FASTDECODE_\w+", (ROOT / "setup.py").read_text(encoding="utf-8")))
    assert documented == read_here


def test_every_name_of_the_package_in_the_text_exists():
    for name in re.findall(r"\bfd\.(\w+)", README):
        assert hasattr(fd, name), name
    for name in re.findall(r"`(STATUS_\w+)`", README):
        assert hasattr(fd, name), name
    for name in re.findall(r"\b(\w+Log\w+(?:Warper|Processor))\b", README):
        assert hasattr(fd.hf, name), name
