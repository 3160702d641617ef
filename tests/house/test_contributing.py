"""The example in CONTRIBUTING.md is worked through, and the files it names are there."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch
import yaml

import fastdecode as fd
from fastdecode import rules
from tests import ROOT
from tests.core import test_rules
from tests.support import cases, transcriptions
from tests.support.judge import kept_by
from tests.support.tolerance import EXACT_EDGE

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RULE, TRANSCRIPTION = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
ROW, RANGE = re.findall(r"^```\n    (.*?),\n```", PAGE, re.MULTILINE | re.DOTALL)


def made_by(code: str, module) -> dict:
    """The names of a module once this code stands at its end."""
    names = dict(vars(module))
    exec(code, names)
    return names


def test_the_rule_keeps_what_its_transcription_keeps(monkeypatch):
    rule = made_by(RULE, rules)["surprise"]
    margins_of = made_by(TRANSCRIPTION, transcriptions)["surprise"]
    monkeypatch.setattr(fd, "surprise", rule, raising=False)
    row = eval(ROW, dict(vars(cases)))
    assert row.rule is rule and len(row.values) == 3
    x = cases.REAL.logits()[::16]
    for value in row.values:
        margins = np.stack([margins_of(logits.double().numpy(), value) for logits in x])
        far = np.abs(margins) > EXACT_EDGE
        kept = kept_by(x, row(value)).numpy()
        assert np.array_equal(kept[far], (margins > 0)[far]) and kept.any() and not kept.all()
    each = fd.truncate(x, fd.plan(rule(torch.tensor([0.0, 1.0, 2.0, 3.0]))))
    assert torch.equal(each[1], fd.truncate(x[1:2], fd.plan(rule(1.0)))[0])


def test_the_range_is_the_one_of_the_message(monkeypatch):
    rule = made_by(RULE, rules)["surprise"]
    monkeypatch.setattr(fd, "surprise", rule, raising=False)
    monkeypatch.setattr(test_rules, "RANGES", eval(f"{{{RANGE}}}", dict(vars(test_rules))))
    test_rules.test_ranges(rule)


def test_its_names_are_free():
    assert not hasattr(rules, "surprise"), (
        "fastdecode has the rule surprise now: CONTRIBUTING.md needs another example."
    )


def test_the_files_are_there():
    named = set(re.findall(r"`((?:[\w.*]+/)+[\w.*]*|\w+\.(?:py|md|toml)|Makefile)`", PAGE))
    assert len(named) > 25
    inside = (ROOT, ROOT / "fastdecode", ROOT / "csrc")
    assert [name for name in named if not any(list(place.glob(name.rstrip("/"))) for place in inside)] == []


def test_what_calls_the_makefile_asks_for_targets_that_it_has():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    run = re.findall(r"^make ([\w-]+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert run[0] == "check" and set(run) >= {"test", "test-hf457", "test-install", "lint"} and set(run) <= targets


def test_check_runs_test_files_that_are_there():
    """pytest would say so too, but only after a minute."""
    listed = re.search(
        r"^CHECKED := .*?tests/%\.py,(.*?)\)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M | re.S
    )
    files = listed.group(1).replace("\\", " ").split()
    assert len(files) > 5 and [name for name in files if not (ROOT / "tests" / f"{name}.py").is_file()] == []


def test_the_workflow_runs_what_everybody_runs():
    if not (ROOT / ".github").is_dir():
        pytest.skip("a source distribution has no .github")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        fields = yaml.safe_load(form.read_text(encoding="utf-8"))["body"]
        assert all(field["type"] == "markdown" or field["attributes"]["label"] for field in fields), form.name


def test_the_commands_are_in_the_makefile():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([\w-]+)", PAGE)) - targets == set()
