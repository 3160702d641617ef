"""The peers as candidates: transformers, plain torch and numpy as people write these rules, and llama.cpp if it is installed.

Each returns what `fd.truncate` or `fd.sample` returns: masked logits in a new tensor, or one token for each row. All get
float32; from bfloat16 they convert first, as `generate` does ("hf given float32" leaves that out).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fastdecode.verify import samplers

from ..plans import RuleCase
from ..timing import Candidate
from . import llama
from .ours import SEED

NAMES = ("hf", "hf given float32", "torch", "torch, cumsum", "numpy", "llama.cpp")

Mask = Callable[[torch.Tensor], torch.Tensor]


def candidates(case: RuleCase, what: str, temperature: float, count: int, which: frozenset[str]) -> list[Candidate]:
    """The peers that know this rule. `count`: time them on the first so many rows."""
    found = []
    finish = _drawn if what == "token" else lambda mask: mask
    warpers = case.hf_warpers(temperature)
    if warpers is not None:
        theirs = finish(lambda x: warpers(None, x))
        found += [
            Candidate(name, bind(theirs), count)
            for name, bind in (("hf", _bind), ("hf given float32", _bind_converted))
            if name in which
        ]
    plain = TORCH.get(case.name)
    if plain is not None and "torch" in which:
        found.append(Candidate("torch", _bind(finish(_at(plain, temperature))), count))
    if plain is not None and "torch, cumsum" in which and what == "token":
        found.append(Candidate("torch, cumsum", _bind(_drawn_by_cumsum(_at(plain, temperature))), count))
    if case.name in NUMPY and "numpy" in which and what == "token":
        found.append(Candidate("numpy", _numpy(NUMPY[case.name], temperature), count))
    if case.name in llama.CHAINS and "llama.cpp" in which and what == "token" and llama.available():
        found.append(Candidate("llama.cpp", llama.bind(case.name, temperature), count))
    return found


@dataclass(frozen=True)
class Guest:
    """The function of `--peer`, by its name."""

    peer: samplers.Peer
    writes: bool  # into its logits: every call needs new ones, or it is timed on what the call before left of them

    def candidates(self, case: RuleCase, what: str, temperature: float, count: int) -> list[Candidate]:
        """It draws from a plain softmax, so only there does it do what the others do."""
        if case.rules or what != "token" or temperature != 1:
            return []
        call = self.peer.function
        function = (lambda x: call(x.clone(), SEED)) if self.writes else (lambda x: call(x, SEED))
        return [Candidate(self.name, _bind(function), count)]

    @property
    def name(self) -> str:
        return f"{self.peer}, with a copy of its logits" if self.writes else str(self.peer)


def guest(named: str) -> Guest:
    """The function that MODULE:FUNCTION names. What it draws is for `fastdecode verify --peer` to judge.

    Raises:
        ValueError: there is none, or it does not answer with token ids.
    """
    peer = samplers.peer_named(named, "cpu")
    x = torch.linspace(0, 9, 2000).repeat(2, 1)
    passed = x.clone()
    try:
        peer.ask(passed, SEED)
    except Exception as error:  # whatever it does with these rows
        raise ValueError(f"--peer {named} must draw tokens from logits [2, 2000]: {error}") from None
    return Guest(peer, writes=not torch.equal(x, passed))


def _bind(function: Mask) -> Callable[[torch.Tensor], Callable[[], object]]:
    return lambda x: lambda: function(x.float())  # no copy where it is float32 already


def _bind_converted(function: Mask) -> Callable[[torch.Tensor], Callable[[], object]]:
    def bind(x: torch.Tensor) -> Callable[[], object]:
        x = x.float()
        return lambda: function(x)

    return bind


def _drawn(mask: Mask) -> Mask:
    """The rest of a step of `generate`."""
    return lambda x: torch.multinomial(torch.softmax(mask(x), -1), 1).squeeze(1)


def _drawn_by_cumsum(mask: Mask) -> Mask:
    """What those write who have found `torch.multinomial` slow."""

    def call(x: torch.Tensor) -> torch.Tensor:
        sums = torch.softmax(mask(x), -1).cumsum(-1)
        return torch.searchsorted(sums, torch.rand(len(x), 1) * sums[:, -1:], right=True).squeeze(1)

    return call


def _at(mask: Mask, temperature: float) -> Mask:
    return mask if temperature == 1 else lambda x: mask(x / temperature)


# ---- plain torch ---------------------------------------------------------------------------------------------------


def _top_k(x: torch.Tensor, k: int) -> torch.Tensor:
    return x.masked_fill(x < x.topk(min(k, x.shape[1])).values[:, -1:], -math.inf)


def _top_p(x: torch.Tensor, p: float) -> torch.Tensor:
    ordered, order = x.sort(descending=True)
    probs = ordered.softmax(-1)
    removed = probs.cumsum(-1) - probs >= p
    return x.masked_fill(torch.zeros_like(removed).scatter(1, order, removed), -math.inf)


def _min_p(x: torch.Tensor, p: float) -> torch.Tensor:
    probs = x.softmax(-1)
    return x.masked_fill(probs < p * probs.amax(-1, keepdim=True), -math.inf)


def _typical(x: torch.Tensor, mass: float) -> torch.Tensor:
    log_p = x.log_softmax(-1)
    p = log_p.exp()
    distance = (-log_p + torch.xlogy(p, p).sum(-1, keepdim=True)).abs()
    order = distance.argsort(-1)
    ordered = p.gather(1, order)
    removed = ordered.cumsum(-1) - ordered >= mass
    return x.masked_fill(torch.zeros_like(removed).scatter(1, order, removed), -math.inf)


def _top_h(x: torch.Tensor, alpha: float) -> torch.Tensor:
    log_p, order = x.log_softmax(-1).sort(descending=True)
    p = log_p.exp()
    mass, moment = p.cumsum(-1), torch.xlogy(p, p).cumsum(-1)
    removed = mass.log() - moment / mass > -alpha * moment[:, -1:]
    removed[:, 0] = False
    return x.masked_fill(torch.zeros_like(removed).scatter(1, order, removed), -math.inf)


def _epsilon(x: torch.Tensor, epsilon: float) -> torch.Tensor:
    probs = x.softmax(-1)
    return x.masked_fill((probs < epsilon) & (probs < probs.amax(-1, keepdim=True)), -math.inf)


def _eta(x: torch.Tensor, epsilon: float) -> torch.Tensor:
    log_p = x.log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1, keepdim=True)
    eta = (math.sqrt(epsilon) * (-entropy).exp()).clamp(max=epsilon)
    return x.masked_fill((p < eta) & (p < p.amax(-1, keepdim=True)), -math.inf)


def _top_n_sigma(x: torch.Tensor, n: float) -> torch.Tensor:
    return x.masked_fill(x < x.amax(-1, keepdim=True) - n * x.std(-1, keepdim=True), -math.inf)


TORCH: dict[str, Mask] = {
    "none": lambda x: x,
    "min_p .05": lambda x: _min_p(x, 0.05),
    "top_k 50": lambda x: _top_k(x, 50),
    "top_p .95": lambda x: _top_p(x, 0.95),
    "typical .9": lambda x: _typical(x, 0.9),
    "top_h .4": lambda x: _top_h(x, 0.4),
    "epsilon 3e-4": lambda x: _epsilon(x, 3e-4),
    "eta 3e-4": lambda x: _eta(x, 3e-4),
    "top_n_sigma 1": lambda x: _top_n_sigma(x, 1.0),
    "top_k 50, top_p .95": lambda x: _top_p(_top_k(x, 50), 0.95),
    "min_p .05, typical .9": lambda x: _typical(_min_p(x, 0.05), 0.9),
    "min_p .05, top_h .4": lambda x: _top_h(_min_p(x, 0.05), 0.4),
}

# ---- numpy: probabilities, a mask, and the inverse of the cumulative sum ----------------------------------------------


def _numpy_min_p(p: np.ndarray) -> np.ndarray:
    return np.where(p >= 0.05 * p.max(-1, keepdims=True), p, 0.0)


def _numpy_top_p(p: np.ndarray) -> np.ndarray:
    order = np.argsort(-p, axis=-1)
    ordered = np.take_along_axis(p, order, -1)
    kept = np.where(np.cumsum(ordered, -1) - ordered < 0.95, ordered, 0.0)
    out = np.empty_like(p)
    np.put_along_axis(out, order, kept, -1)
    return out


NUMPY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda p: p,
    "min_p .05": _numpy_min_p,
    "top_p .95": _numpy_top_p,
}


def _numpy(
    rule: Callable[[np.ndarray], np.ndarray], temperature: float
) -> Callable[[torch.Tensor], Callable[[], object]]:
    def bind(x: torch.Tensor) -> Callable[[], object]:
        logits, noise = x.float().numpy(), np.random.default_rng(1)

        def call() -> np.ndarray:
            scaled = logits if temperature == 1 else logits / temperature
            p = np.exp(scaled - scaled.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            sums = np.cumsum(rule(p), -1)
            drawn = noise.random(len(sums)) * sums[:, -1]
            return np.array([np.searchsorted(row, u, side="right") for row, u in zip(sums, drawn)])

        return call

    return bind
