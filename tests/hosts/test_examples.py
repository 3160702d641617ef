"""The examples run, on a tiny model, and print what they say."""

from __future__ import annotations

import runpy
import sys

import pytest

from tests import ROOT
from tests.support import tiny_model

transformers = pytest.importorskip("transformers")

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("error:.*is deprecated")
def test_an_example(path, folder, monkeypatch, capsys):
    if path.stem == "generate" and not hasattr(transformers, "TopHLogitsWarper"):
        pytest.skip("transformers 4.57 has no top_h")
    said = {"generate": ["min-p:", "Top-H:", "the old keeper saw"], "loop": ["sea"], "per_token": ["entropy"],
            "soft_thinking": ["soft tokens:", "gradient of the output layer:"],
            "rows": ["T = 0.0:", "T = 0.7:", "T = 1.5:"]}  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(path), str(folder)])
    runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    assert all(words in out for words in said[path.stem]) and len(out.split()) > 20
