"""What `generate_temperatures` is given to read, as the arguments of `generate`: all of it is passed on, or refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import utils as theirs

from .forward import CACHE_NAMES

# What `generate` takes besides the model's inputs, and what it drops without a word. A cache would be changed in place.
_NO_INPUTS = {
    *vars(GenerationConfig()), *inspect.signature(theirs.GenerationMixin.generate).parameters, *CACHE_NAMES,
    "past_key_values", "cache_params", "tokenizer", "assistant_tokenizer", "labels",
}  # fmt: skip


def arguments(model: Any, inputs: Any, tokenizer: Any) -> dict[str, Any]:
    """Everything in `inputs`, by the names that `generate` has for it, on the model's device.

    Raises:
        ValueError: this is no prompt, it holds something that is no input, or prompts of a decoder are padded on the right.
    """
    if isinstance(inputs, str):
        if tokenizer is None:
            raise ValueError("a prompt in words needs a tokenizer; pass tokenizer=, or token ids.")
        encoded = tokenizer(inputs, return_tensors="pt")
        # Many tokenizers add token_type_ids, zeros for a single text, where the model does not take them.
        inputs = {name: encoded[name] for name in ("input_ids", "attention_mask") if name in encoded}
    given = dict(inputs) if isinstance(inputs, Mapping) else {"input_ids": inputs}
    refused = sorted(_NO_INPUTS & given.keys())
    if refused:
        raise ValueError(
            f"inputs must hold what the model reads; got {', '.join(refused)}: leave it out, or pass it to "
            "generate_temperatures itself where that has it."
        )
    _check_ids(given)
    if given.get("input_ids") is not None and given["input_ids"].ndim == 1:
        length = given["input_ids"].shape
        given = {name: v[None] if torch.is_tensor(v) and v.shape == length else v for name, v in given.items()}
    mask = given.get("attention_mask")
    if mask is not None and not model.config.is_encoder_decoder and not bool(mask[:, -1].all()):
        raise ValueError("prompts must be padded on the left; set tokenizer.padding_side = 'left'.")
    return {name: v.to(model.device) if torch.is_tensor(v) else v for name, v in given.items()}


def count(inputs: Any) -> int:
    """The number of prompts in `inputs`, as far as that can be told before `generate` has seen them."""
    given = inputs if isinstance(inputs, Mapping) else {"input_ids": inputs}
    first = next((given[name] for name in ("input_ids", "inputs_embeds", "input_features") if name in given), None)
    least = 2 if given.get("input_ids") is first else 3
    return len(first) if isinstance(first, torch.Tensor) and first.ndim >= least else 1


def _check_ids(given: dict[str, Any]) -> None:
    ids = given.get("input_ids")
    if ids is None and any(torch.is_tensor(value) for value in given.values()):
        return  # embeddings, or sounds
    if not isinstance(ids, torch.Tensor) or ids.ndim not in (1, 2) or not ids.numel() or ids.is_floating_point():
        raise ValueError("inputs must be a prompt, token ids [n] or [B, n] with n >= 1, or what a tokenizer returns.")
