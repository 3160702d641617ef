"""The samplers to judge: an engine of fastdecode, called as users call it, or a peer, which is another library's sampler."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

import fastdecode as fd

from .. import dispatch
from ..philox import GROUP_SIZE
from ..rules import FLOOR, Cut, Rule


class Sampler(Protocol):
    """What the tests of draws call."""

    device: torch.device

    def draw(self, row: torch.Tensor, count: int, seed: int, listed: bool = False) -> torch.Tensor:
        """`count` independent draws from a row of logits [V]; int64 [count], on the CPU. `listed`: an engine may be asked
        through a cut that removes nothing."""

    def pairs(self, row: torch.Tensor, count: int, seed: int) -> dict[str, torch.Tensor]:
        """[count, 2] draws for each way in which two draws can be neighbours."""


@dataclass(frozen=True)
class Effort:
    """The number of draws for each check. The summary says which faults that number finds."""

    vocab: int
    draws: int  # for each G-test
    tail_draws: int
    pairs: int  # for each test of independence
    never: int  # draws from rows with holes,
    holes_vocab: int  # V of these rows
    rows: int = 0  # of the exact comparisons


QUICK = Effort(128256, 2**16, 2**17, 2**14, 2 * 10**6, 128256, 2)
FULL = Effort(128256, 2**18, 2**18, 2**17, 10**8, 128256, 4)
# The reference makes all its noise with torch, and Triton's interpreter everything with numpy.
SLOW_QUICK = Effort(2048, 2**13, 0, 2**12, 10**4, 512, 1)
SLOW = Effort(2048, 2**15, 2**15, 2**14, 10**6, 512, 2)
# A peer reads a row for every draw. Finding 24-bit noise takes 3e9 noises, for any division into rows.
PEER_QUICK = Effort(4096, 2**14, 0, 2**13, 5 * 10**5, 64)
PEER = Effort(128256, 2**13, 2**15, 2**16, 5 * 10**6, 64)


_KEEPS_ALL = fd.plan(Rule("cut", (), cuts=(Cut(FLOOR, offset=-1e4),)))


class Engine:
    """The engine in use, through the public functions."""

    def __init__(self, name: str, device: torch.device):
        self.name, self.device = name, device

    def __str__(self) -> str:
        return f"the engine {self.name}"

    @property
    def slow(self) -> bool:
        return self.name == "reference" or (self.name == "triton" and self.device.type == "cpu")

    def draw(self, row: torch.Tensor, count: int, seed: int, listed: bool = False) -> torch.Tensor:
        batch = 16
        rows = row.to(self.device).expand(batch, -1)
        most = 2**16 if not self.slow else max(1, 2**17 // (row.numel() // GROUP_SIZE + GROUP_SIZE))
        plan = _KEEPS_ALL if listed else None
        drawn: list[torch.Tensor] = []
        step = 0
        while (left := count - sum(map(len, drawn))) > 0:
            samples = min(most, -(-left // batch))
            drawn.append(fd.sample(rows, plan, seed=seed, step=step, num_samples=samples).tokens.flatten().cpu()[:left])
            step += 1
        return torch.cat(drawn)

    def pairs(self, row: torch.Tensor, count: int, seed: int) -> dict[str, torch.Tensor]:
        rows = row.to(self.device).expand(2 * count, -1)
        each, five = torch.arange(2 * count, device=self.device), torch.tensor(5, device=self.device)
        samples = fd.sample(rows[: count // 32], seed=seed, num_samples=64).tokens
        drawn = {
            "streams": fd.sample(rows, seed=seed, streams=each).tokens,
            "steps": fd.sample(rows, seed=seed, step=each, streams=five).tokens,
            "seeds": fd.sample(rows, seed=each + seed * 2**32, streams=five).tokens,
            "samples": samples,
        }
        return {name: tokens.cpu().view(-1, 2) for name, tokens in drawn.items()}


class Peer:
    """f(logits [B, V], seed) -> tokens [B], from a plain softmax."""

    def __init__(self, function: Callable[[torch.Tensor, int], Any], device: torch.device):
        self.function, self.device = function, device
        self.calls = 0

    def __str__(self) -> str:
        return f"the peer {getattr(self.function, '__module__', '')}:{getattr(self.function, '__qualname__', '')}"

    def ask(self, logits: torch.Tensor, seed: int) -> torch.Tensor:
        """Call the peer with a seed that no other call gets.

        Raises:
            Broken: the answer is not [B] token ids.
        """
        self.calls += 1
        tokens = torch.as_tensor(self.function(logits, (seed * 1_000_003 + self.calls) % 2**31))
        if tokens.shape == (len(logits), 1):
            tokens = tokens[:, 0]
        if tokens.shape != (len(logits),) or tokens.is_floating_point():
            raise Broken(f"expected {len(logits)} token ids; got {tokens.dtype} of shape {list(tokens.shape)}")
        tokens = tokens.long().cpu()
        outside = tokens[(tokens < 0) | (tokens >= logits.shape[1])]
        if len(outside):
            raise Broken(f"expected token ids in [0, {logits.shape[1]}); got {int(outside[0])}")
        return tokens

    def draw(self, row: torch.Tensor, count: int, seed: int, listed: bool = False) -> torch.Tensor:
        batch = min(count, max(1, 2**22 // row.numel()), 2**14)
        rows = row.to(self.device).repeat(batch, 1)
        given, drawn = torch.empty_like(rows), []
        for _ in range(-(-count // batch)):
            drawn.append(self.ask(given.copy_(rows), seed))  # a copy: a sampler may work in place
        return torch.cat(drawn)[:count]

    def pairs(self, row: torch.Tensor, count: int, seed: int) -> dict[str, torch.Tensor]:
        batch = min(2048, count)
        rows = row.to(self.device).repeat(batch, 1)
        calls = torch.stack([self.ask(rows.clone(), seed) for _ in range(-(-2 * count // batch))])
        return {"rows of a batch": calls.view(-1, 2), "seeds": calls.T.reshape(-1, 2)}


class Broken(Exception):
    """The peer did not return valid token ids."""


def engine_named(name: str | None, device: str | None) -> Engine:
    """The engine to judge, and where its logits lie.

    Raises:
        ValueError: it cannot run here.
    """
    here = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = name is None or (name != "reference" and name in dispatch.PREFERENCE["cuda"])
    where = _device(device or (here if on_gpu else "cpu"))
    try:
        with dispatch.use(name) if name else contextlib.nullcontext():  # FASTDECODE_BACKEND applies, as to other calls
            chosen = dispatch.engine_for(where)
    except RuntimeError as error:
        raise ValueError(str(error).rstrip(".")) from None
    return Engine(next(known for known, each in dispatch.ENGINES.items() if each is chosen), where)


def peer_named(named: str, device: str | None) -> Peer:
    """The function that MODULE:FUNCTION names, in a module of the working directory or an installed one.

    Raises:
        ValueError: there is no such function, or a call of it fails.
    """
    module, _, function = named.partition(":")
    if not module or not function:
        raise ValueError(f"--peer must be MODULE:FUNCTION, such as mine:sample; got {named!r}")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, "")  # as with python -m; a console script has its own folder there
    try:
        sampler = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # an import may raise anything
        raise ValueError(f"--peer {named} cannot be imported: {_told(error)}") from None
    if not callable(sampler):
        raise ValueError(f"--peer {named} must be a function f(logits [B, V], seed); got {type(sampler).__name__}")
    where = _device(device or "cpu")
    try:
        sampler(torch.zeros(2, 64, device=where), 1)
    except (Exception, SystemExit) as error:
        raise ValueError(f"--peer {named} must take logits [2, 64] and a seed; it raised {_told(error)}") from None
    return Peer(sampler, where)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda; got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU, and torch sees none")
    return torch.device(name)


def effort(sampler: Sampler, quick: bool) -> Effort:
    """The number of draws that suits a sampler."""
    if isinstance(sampler, Peer):
        return PEER_QUICK if quick else PEER
    if isinstance(sampler, Engine) and sampler.slow:
        return SLOW_QUICK if quick else SLOW
    return QUICK if quick else FULL
