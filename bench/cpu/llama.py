"""llama.cpp through llama-cpp-python's low-level functions: fill the array of candidates, apply a sampler chain, read the token.

Filling the array counts, as llama.cpp does it for each token; here numpy does, in two copies.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from functools import cache

import numpy as np
import torch

# What comes before the draw; each calls the loaded library.
CHAINS: dict[str, tuple[Callable, ...]] = {
    "none": (),
    "min_p .05": (lambda lib: lib.llama_sampler_init_min_p(0.05, 1),),
    "top_k 50": (lambda lib: lib.llama_sampler_init_top_k(50),),
    "top_p .95": (lambda lib: lib.llama_sampler_init_top_p(0.95, 1),),
    "typical .9": (lambda lib: lib.llama_sampler_init_typical(0.9, 1),),
    "top_n_sigma 1": (lambda lib: lib.llama_sampler_init_top_n_sigma(1.0),),
    "top_k 50, top_p .95": (
        lambda lib: lib.llama_sampler_init_top_k(50),
        lambda lib: lib.llama_sampler_init_top_p(0.95, 1),
    ),
    "min_p .05, typical .9": (
        lambda lib: lib.llama_sampler_init_min_p(0.05, 1),
        lambda lib: lib.llama_sampler_init_typical(0.9, 1),
    ),
}

_ELEMENT = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


@cache
def available() -> str | None:
    """The version of llama-cpp-python, or None where it is not installed or does not load."""
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError):
        return None
    return llama_cpp.__version__


def bind(rule: str, temperature: float) -> Callable[[torch.Tensor], Callable[[], object]]:
    """Draw one token from each row."""
    import llama_cpp as lib

    def bind_rows(x: torch.Tensor) -> Callable[[], object]:
        logits = x.float().numpy()
        vocab = logits.shape[1]
        fresh = np.zeros(vocab, _ELEMENT)
        fresh["id"] = np.arange(vocab)
        array = fresh.copy()
        words, fresh_words = (
            array.view(np.int32),
            fresh.view(np.int32),
        )  # numpy copies structures slowly, field by field
        chain = _Chain(lib, rule, temperature)
        address = ctypes.cast(array.ctypes.data, ctypes.POINTER(lib.llama_token_data))
        candidates = lib.llama_token_data_array(data=address, size=vocab, selected=-1, sorted=False)

        def call() -> list[int]:
            tokens = []
            for row in logits:
                words[:] = fresh_words  # the samplers reorder the array
                array["logit"] = row
                candidates.data, candidates.size, candidates.selected, candidates.sorted = address, vocab, -1, False
                lib.llama_sampler_apply(chain.sampler, ctypes.byref(candidates))
                tokens.append(int(candidates.data[candidates.selected].id))
            return tokens

        return call

    return bind_rows


class _Chain:
    """A sampler chain that is freed with its owner."""

    def __init__(self, lib, rule: str, temperature: float):
        self.lib = lib
        self.sampler = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        first = [] if temperature == 1 else [lambda lib: lib.llama_sampler_init_temp(temperature)]
        for make in (*first, *CHAINS[rule], lambda lib: lib.llama_sampler_init_dist(1)):
            lib.llama_sampler_chain_add(self.sampler, make(lib))

    def __del__(self) -> None:
        self.lib.llama_sampler_free(self.sampler)
