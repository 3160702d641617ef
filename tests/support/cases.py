"""Inputs x plans, shared by the tests and the benchmarks: hostile logits by name, one row of values per rule, and chains.

To add a rule, add one `RuleRow` to ROWS; its plans (tight, typical, loose, per-row, min_tokens_to_keep, off) follow from it.
All inputs are the same at every call: each has its own seed.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from safetensors.torch import load_file

import fastdecode as fd
from tests import ROOT

INF = math.inf
DATA = ROOT / "tests" / "data"

# ---- inputs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """Logits with a name. `make` returns float32 [B, V]."""

    name: str
    make: Callable[[], torch.Tensor]

    def logits(self) -> torch.Tensor:
        return _made(self).clone()


@cache
def _made(given: Input) -> torch.Tensor:
    return given.make().to(torch.float32).contiguous()


def normal(batch: int, vocab: int, scale: float, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((batch, vocab)) * scale).float()


def long_tail(batch: int, vocab: int, power: float, seed: int) -> torch.Tensor:
    """Probabilities proportional to rank^-power, at shuffled places."""
    ranked = -power * np.log(np.arange(1, vocab + 1))
    shuffle = np.random.default_rng(seed)
    return torch.from_numpy(
        np.stack([shuffle.permutation(ranked) for _ in range(batch)]) if batch else np.zeros((0, vocab))
    ).float()


def with_holes(x: torch.Tensor, holes: int, seed: int, hole: float = -INF) -> torch.Tensor:
    """`holes` places of each row at `hole`."""
    shuffle = np.random.default_rng(seed)
    for row in x:
        row[torch.from_numpy(shuffle.permutation(len(row))[:holes])] = hole
    return x


def real() -> torch.Tensor:
    """64 rows of SmolLM2-135M, V = 49152; float16 in the file, so that many rows hold ties."""
    return load_file(DATA / "smollm2_logits.safetensors")["logits"].float()


def ordinary(batch: int, vocab: int, seed: int) -> torch.Tensor:
    """Like a language model's row: a long tail, a few candidates, and no ties."""
    return long_tail(batch, vocab, 1.2, seed) + normal(batch, vocab, 0.5, seed + 1)


def _set(x: torch.Tensor, *places: tuple[int, int, float]) -> torch.Tensor:
    for row, token, value in places:
        x[row, token] = value
    return x


def _spikes(vocab: int, tokens: slice, seed: int) -> torch.Tensor:
    """All the large logits at `tokens`, in shape unlike the groups of 256 tokens that the draw works by."""
    x = normal(3, vocab, 1.0, seed) - 12.0
    x[:, tokens] = normal(3, vocab, 2.0, seed + 1)[:, tokens]
    return x


def _both_ends(x: torch.Tensor) -> torch.Tensor:
    """300 of the largest float, 300 of the lowest: their difference is no float."""
    x[:, :300], x[:, 500:800] = torch.finfo(torch.float32).max, torch.finfo(torch.float32).min
    return x


def _signed_zeros() -> torch.Tensor:
    x = torch.tensor([0.0, -0.0, -1.0, -2.0])
    return x[torch.from_numpy(np.random.default_rng(17).integers(0, 4, (3, 600)))]


# Hostile at a size where the reference is quick; 1000 = three whole groups of 256 and a ragged one.
HOSTILE = (
    Input("flat", lambda: normal(4, 1000, 0.3, 1)),
    Input("peaked", lambda: normal(4, 1000, 8.0, 2)),
    Input("long tail", lambda: long_tail(4, 1000, 1.5, 3)),
    Input("one hot", lambda: _set(torch.zeros(3, 1000), (0, 0, 40.0), (1, 517, 40.0), (2, 999, 15.0))),
    Input("one ahead", lambda: _set(normal(3, 1000, 1.0, 4), (0, 3, 12.0), (1, 256, 20.0), (2, 999, 30.0))),
    Input("all equal", lambda: torch.tensor([0.0, -7.25, 1e4])[:, None].expand(3, 1000)),
    Input("integer ties", lambda: normal(6, 1000, 3.0, 5).round()),
    Input(
        "a tied block",
        lambda: torch.cat([normal(4, 20, 0.5, 6) + 2.0, torch.zeros(4, 600), normal(4, 380, 0.5, 7) - 3.0], 1),
    ),
    Input("bf16 rounded", lambda: normal(6, 1000, 4.0, 8).bfloat16().float()),
    Input("f16 rounded", lambda: normal(4, 1000, 2.0, 9).half().float()),
    Input("+1e4", lambda: normal(4, 1000, 3.0, 10) + 1e4),
    Input("-1e4", lambda: normal(4, 1000, 3.0, 11) - 1e4),
    Input("subnormal", lambda: normal(3, 1000, 1.0, 12) * 1e-40),
    Input("signed zeros", _signed_zeros),
    Input("holes", lambda: with_holes(normal(4, 1000, 3.0, 13), 800, 14)),
    Input("lowest float", lambda: with_holes(normal(3, 1000, 3.0, 15), 500, 16, hole=torch.finfo(torch.float32).min)),
    Input("all at the lowest float", lambda: torch.full((2, 1000), torch.finfo(torch.float32).min)),
    Input("both ends of float", lambda: _both_ends(normal(2, 1000, 1.0, 26))),
    Input("90 nats apart", lambda: torch.arange(1000.0).sub(1).clamp(min=0) * torch.tensor([[-90.0], [-40.0]])),
    Input("one survivor", lambda: _set(torch.full((3, 1000), -INF), (0, 0, 5.0), (1, 600, -3e4), (2, 999, 0.0))),
    Input(
        "nan",
        lambda: _set(normal(5, 1000, 2.0, 18), (0, 0, math.nan), (1, 999, math.nan), (3, 500, math.nan), (3, 501, INF)),
    ),
    Input("+inf", lambda: _set(normal(4, 1000, 2.0, 19), (0, 7, INF), (1, 7, INF), (1, 700, INF), (3, 999, INF))),
    Input("all -inf", lambda: torch.cat([torch.full((1, 1000), -INF), normal(2, 1000, 2.0, 20)])),
    Input("descending", lambda: normal(3, 1000, 3.0, 21).sort(descending=True).values),
    Input("ascending", lambda: normal(3, 1000, 3.0, 22).sort().values),
    Input("one group", lambda: _spikes(1000, slice(256, 512), 23)),
    Input("one in each group", lambda: _spikes(1000, slice(3, None, 100), 25)),
)

# Rows of logits that differ by less than any rule looks at: which of them a typicality or a floor keeps says nothing.
INDISTINGUISHABLE = ("subnormal",)

SIZES = tuple(
    Input(f"V={vocab}", lambda b=batch, v=vocab: ordinary(b, v, 1000 + v))
    for vocab, batch in (
        (1, 3), (2, 5), (31, 4), (33, 4), (255, 2), (256, 2), (257, 64), (1000, 1), (32000, 2), (50257, 1),
        (128256, 1), (151936, 1), (262144, 1),
    )
)  # fmt: skip

EMPTY_BATCH = Input("B=0", lambda: torch.zeros(0, 1000))

LARGE = (
    Input("holes of 128256", lambda: with_holes(normal(2, 128256, 3.0, 27), 120_000, 28)),
    Input("flat 128256", lambda: normal(1, 128256, 0.5, 29)),
    Input("bf16 rounded 128256", lambda: normal(1, 128256, 2.0, 30).bfloat16()),
    Input("all equal 128256", lambda: torch.full((1, 128256), 2.5)),
)

REAL = Input("real", real)

INPUTS = {given.name: given for given in (*HOSTILE, *SIZES, EMPTY_BATCH, *LARGE, REAL)}

# ---- memory layouts: the same values, lying elsewhere ---------------------------------------------------------------


def _padded(x: torch.Tensor) -> torch.Tensor:
    """Row stride V + 3; what lies between the rows is NaN, so that reading past a row's end shows."""
    return torch.cat([x, x.new_full((len(x), 3), math.nan)], 1)[:, : x.shape[1]]


def _misaligned(x: torch.Tensor) -> torch.Tensor:
    """The first element lies one element after an aligned address."""
    room = x.new_full((x.numel() + 2,), math.nan)
    room[1:-1] = x.flatten()
    return room[1:-1].view(x.shape)


def _every_other_row(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x, torch.full_like(x, math.nan)], 1).flatten(0, 1)[::2]


def _columns(x: torch.Tensor) -> torch.Tensor:
    """Inner stride B: no engine takes it as it is."""
    return x.t().contiguous().t()


LAYOUTS = {"padded": _padded, "misaligned": _misaligned, "every other row": _every_other_row, "columns": _columns}

# ---- plans ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RuleRow:
    """Values of one rule: tight, typical, loose (or none, for a rule without parameter), and the value that switches it off."""

    rule: Callable[..., fd.Rule]
    values: tuple = ()
    off: float | None = None
    option: tuple[str, object] | None = None  # one more keyword, for a variant of the rule

    @property
    def name(self) -> str:
        return self.rule.__name__ + (f"[{self.option[1]}]" if self.option else "")

    def __call__(self, *value, **options) -> fd.Rule:
        return self.rule(*value, **dict([self.option] if self.option else []), **options)

    def typical(self) -> fd.Rule:
        return self(*self.values[1:2])

    def keeps_at_least(self) -> bool:
        """True if the rule takes min_tokens_to_keep."""
        return "min_tokens_to_keep" in inspect.signature(self.rule).parameters


ROWS = (
    RuleRow(fd.temperature, (0.3, 1.5, 4.0)),
    RuleRow(fd.top_k, (1, 50, 700), off=0),
    RuleRow(fd.top_p, (0.1, 0.9, 0.999), off=1.0),
    RuleRow(fd.min_p, (0.5, 0.05, 1e-4), off=0.0),
    RuleRow(fd.typical_p, (0.2, 0.9, 0.995), off=1.0),
    RuleRow(fd.top_h, (0.1, 0.4, 0.9), off=1.0),
    RuleRow(fd.top_h, (0.1, 0.4, 0.9), option=("variant", "hf")),
    RuleRow(fd.epsilon_cutoff, (0.05, 6e-4, 1e-5), off=0.0),
    RuleRow(fd.eta_cutoff, (0.05, 2e-3, 1e-5), off=0.0),
    RuleRow(fd.top_n_sigma, (0.3, 1.0, 4.0), off=math.inf),
    RuleRow(fd.top_a, (1.0, 0.2, 1e-3), off=0.0),
    RuleRow(fd.p_less),
)


def cycle(values: tuple, batch: int) -> torch.Tensor:
    """One value per row, over and over."""
    return torch.tensor([float(values[i % len(values)]) for i in range(batch)])


@dataclass(frozen=True)
class PlanCase:
    """A plan with a name; `make` takes the batch size, which only per-row plans look at."""

    name: str
    make: Callable[[int], fd.Plan]
    removes: bool = True  # False: the plan keeps every finite logit


def _alone(row: RuleRow) -> list[PlanCase]:
    cuts = row.rule is not fd.temperature
    one = [PlanCase(repr(row(*v)), lambda b, v=v: fd.plan(row(*v)), cuts) for v in ([(v,) for v in row.values] or [()])]
    if row.values:
        per_row = row.values if row.off is None else (*row.values, row.off)
        one.append(PlanCase(f"{row.name} by row", lambda b: fd.plan(row(cycle(per_row, b))), cuts))
    if row.keeps_at_least():
        tight = row.values[0]
        one.append(PlanCase(f"{row.name} keeping 7", lambda b: fd.plan(row(tight, min_tokens_to_keep=7))))
    return one


SINGLE = tuple(case for row in ROWS for case in _alone(row))


def _chain(name: str, *rules: fd.Rule) -> PlanCase:
    return PlanCase(name, lambda b: fd.plan(*rules))


CHAINS = (
    PlanCase("nothing", lambda b: fd.plan(), removes=False),
    _chain("hf: temperature, top_k, top_p", fd.temperature(1.5), fd.top_k(50), fd.top_p(0.9)),
    _chain(
        "hf: all warpers", fd.temperature(1.3), fd.top_h(0.9, variant="hf"), fd.top_k(40), fd.top_p(0.97), fd.min_p(0.02),
        fd.typical_p(0.95), fd.epsilon_cutoff(1e-3), fd.eta_cutoff(2e-3),
    ),
    _chain("temperature, top_h", fd.temperature(1.5), fd.top_h(0.4)),
    _chain("temperature, top_h[hf]", fd.temperature(2.0), fd.top_h(0.4, variant="hf")),
    _chain("min_p, typical", fd.min_p(0.02), fd.typical_p(0.6)),
    _chain("typical, min_p: the maximum may be gone", fd.typical_p(0.2), fd.min_p(0.3)),
    _chain(
        "llama.cpp: temperature last", fd.top_n_sigma(3.0), fd.top_k(40), fd.typical_p(0.95), fd.top_p(0.95), fd.min_p(0.05),
        fd.temperature(0.8),
    ),
    _chain("top_p, top_n_sigma", fd.top_p(0.95), fd.top_n_sigma(1.0)),
    _chain("p_less, typical", fd.temperature(2.0), fd.p_less(), fd.typical_p(0.5)),
    _chain("top_k, top_h", fd.top_k(200), fd.top_h(0.5)),
    _chain("typical, top_h", fd.typical_p(0.7), fd.top_h(0.6)),
    _chain("top_h, top_p", fd.temperature(2.0), fd.top_h(0.8), fd.top_p(0.5)),
    _chain("three temperatures", fd.temperature(0.7), fd.top_p(0.95), fd.temperature(2.5), fd.min_p(0.1), fd.temperature(0.5)),
    # The survivors lie so far below the maximum that their exponentials vanish beside it.
    _chain("typical, cold", fd.temperature(2.0), fd.typical_p(0.3), fd.temperature(0.005), fd.top_p(0.9)),
    _chain("greedy", fd.temperature(0)),
    _chain("top_k, top_a, epsilon", fd.top_k(300), fd.top_a(0.05), fd.epsilon_cutoff(2e-3)),
    _chain("greedy of the typical", fd.typical_p(0.2), fd.temperature(0), fd.top_p(0.5)),
    PlanCase("greedy in some rows", lambda b: fd.plan(fd.temperature(cycle((0.0, 1.0, 0.7, 0.0, 2.0), b)), fd.top_p(0.9))),
    PlanCase(
        "off in some rows",
        lambda b: fd.plan(
            fd.top_k(cycle((0, 20, 0), b)), fd.top_p(cycle((1.0, 1.0, 0.8, 0.9), b)), fd.min_p(cycle((0.0, 0.1), b)),
            fd.typical_p(cycle((1.0, 0.9, 1.0, 1.0, 0.5), b)), fd.epsilon_cutoff(cycle((1e-3, 0.0), b)),
        ),
    ),
    PlanCase(
        "every parameter by row",
        lambda b: fd.plan(
            fd.temperature(cycle((0.8, 1.0, 1.7), b)), fd.top_h(cycle((0.5, 0.9), b)), fd.top_n_sigma(cycle((1.0, 3.0), b)),
            fd.eta_cutoff(cycle((1e-3, 1e-2, 0.0), b)), fd.top_a(cycle((0.1, 0.0), b)),
        ),
    ),
)  # fmt: skip

# For inputs where the reference takes its time: each rule once, at its typical value, and the chains that differ most.
TYPICAL = tuple(PlanCase(f"typical value: {row.typical()!r}", lambda b, row=row: fd.plan(row.typical()), row.rule is not fd.temperature)
                for row in ROWS)  # fmt: skip
LARGE_PLANS = (
    *TYPICAL[1:],
    *(
        c
        for c in CHAINS
        if c.name.split(":")[0] in ("nothing", "hf", "temperature, top_h", "llama.cpp", "typical, min_p")
    ),
)

PLANS = {case.name: case for case in (*SINGLE, *CHAINS, *TYPICAL)}
