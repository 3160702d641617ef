"""What the tests of our decoding loop share: tiny models, how generate() is asked, and when two outputs are the same."""

from __future__ import annotations

import functools
import math

import torch
import transformers

import fastdecode as fd
from fastdecode import hf
from tests.support import tiny_model

INF = math.inf
NEW = 12
RAW = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
ALL = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_attentions": True,
       "output_hidden_states": True}  # fmt: skip
MIN_P = {"do_sample": True, **RAW, "temperature": 1.5, "min_p": 0.05}
PLAN = fd.plan(fd.temperature(1.5), fd.min_p(0.05))
CACHE = "cache" if hasattr(transformers.generation.GenerateDecoderOnlyOutput, "cache") else "past_key_values"
OLD = int(transformers.__version__.split(".")[0]) < 5


MODELS = {"llama": tiny_model.llama, "bart": tiny_model.bart}


@functools.cache
def made(kind: str):
    """The model; tests leave it as it was."""
    return MODELS[kind]()


def ask(prompts, **options):
    return {"inputs": prompts, "attention_mask": torch.ones_like(prompts), "max_new_tokens": NEW, **options}


def end_of(model, prompts, row: int, position: int) -> int:
    """A token that ends this row at this place of its greedy text."""
    greedy = model.generate(**ask(prompts, do_sample=False))
    return int(greedy[row, (0 if model.config.is_encoder_decoder else prompts.shape[1]) + position])


def same(ours, expected) -> None:
    """Two outputs of generate() are equal, tensor by tensor; caches by their length."""
    if torch.is_tensor(expected):
        assert torch.equal(ours, expected)
        return
    assert type(ours) is type(expected) and list(ours) == list(expected) and len(expected) > 1
    for name, value in expected.items():
        if isinstance(value, transformers.Cache):
            assert type(ours[name]) is type(value)
            assert ours[name].get_seq_length() == value.get_seq_length() > 0
        else:
            leaves = [torch.utils._pytree.tree_leaves(x) for x in (ours[name], value)]
            assert len(leaves[0]) == len(leaves[1]) > 0, name
            assert all(torch.equal(a, b) for a, b in zip(*leaves)), name


class Recorder:
    """A streamer that keeps what it hears."""

    def __init__(self):
        self.heard = []

    def put(self, tokens):
        self.heard.append(tokens.tolist())

    def end(self):
        self.heard.append("end")


def judged(model, prompts, plan, seed, **options):
    """What transformers' loop writes with the draws of fd.sample."""
    drawn = hf.SamplerLogitsProcessor(plan, seed=seed)
    return model.generate(**ask(prompts, do_sample=False, logits_processor=[drawn], **options))
