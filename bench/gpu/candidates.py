"""What is measured: the two engines here, and the peers, from logits to a token as their users call them.

A maker takes a rule and a temperature and returns a call on logits, or None where the candidate has no such rule; ImportError says
that it is not installed. Peers that want probabilities pay for their softmax, and no peer pays for a division by 1.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch

import fastdecode as fd
from fastdecode import dispatch

from .roster import WHO

Call = Callable[[torch.Tensor], torch.Tensor]
Maker = Callable[[str, float], "Call | None"]

# FlashInfer and vLLM have no min-p beside top-k and top-p in one call; theirs is then the shorter chain.
CHAIN = "top_k, top_p, min_p"

RULES: dict[str, tuple[fd.Rule, ...]] = {
    "none": (),
    "top_k": (fd.top_k(50),),
    "top_p": (fd.top_p(0.95),),
    "min_p": (fd.min_p(0.05),),
    CHAIN: (fd.top_k(50), fd.top_p(0.95), fd.min_p(0.05)),
    "typical": (fd.typical_p(0.9),),
    "top_h": (fd.top_h(0.4),),
}
SEED = 1


def plan_of(rule: str, temperature: float) -> fd.Plan:
    return fd.plan(fd.temperature(temperature), *RULES[rule])


def ours(engine: str) -> Maker:
    def make(rule: str, temperature: float) -> Call:
        if engine not in dispatch.ENGINES:
            raise ImportError(dispatch.MISSING.get(engine, f"{engine} is no engine"))
        plan = plan_of(rule, temperature)

        def call(x: torch.Tensor) -> torch.Tensor:
            with dispatch.use(engine):
                return fd.sample(x, plan, seed=SEED).tokens

        return call

    return make


def divided(x: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits for a peer that leaves the temperature to its caller. float32 stays where it is: that is the copy a peer pays for."""
    x = x.float()
    return x if temperature == 1 else x / temperature


def transformers_step(rule: str, temperature: float) -> Call | None:
    """The warpers, softmax and multinomial of `generate`, in float32 as there."""
    hf = importlib.import_module("transformers.generation.logits_process")
    made = {
        "none": (),
        "min_p": (hf.MinPLogitsWarper(0.05),),
        "top_k": (hf.TopKLogitsWarper(50),),
        "top_p": (hf.TopPLogitsWarper(0.95),),
        "typical": (hf.TypicalLogitsWarper(0.9),),
        CHAIN: (hf.TopKLogitsWarper(50), hf.TopPLogitsWarper(0.95), hf.MinPLogitsWarper(0.05)),
    }.get(rule)
    if made is None:
        return None

    def step(x: torch.Tensor) -> torch.Tensor:
        x = divided(x, temperature)
        for warper in made:
            x = warper(None, x)
        return torch.multinomial(x.softmax(-1), 1)

    return step


def compiled_step(rule: str, temperature: float) -> Call | None:
    """That step by torch.compile, which starts afresh for each case. Past its limit of recompilations, or at an operation that it
    does not know, it would go on in eager mode and say nothing; `fullgraph` makes both an error."""
    importlib.import_module("torch._dynamo").reset()
    step = transformers_step(rule, temperature)
    return step and torch.compile(step, dynamic=False, fullgraph=True)


# With a seed and an offset FlashInfer asks no generator, which is on the host and cannot be captured.
STREAM = {"seed": SEED, "offset": 0}


def flashinfer_step(rule: str, temperature: float) -> Call | None:
    """FlashInfer 0.6.18: its softmax, which takes the temperature, and what samples from probabilities."""
    sampling = importlib.import_module("flashinfer.sampling")
    draw: Call | None = {
        "none": lambda p: sampling.sampling_from_probs(p, **STREAM),
        "min_p": lambda p: sampling.min_p_sampling_from_probs(p, 0.05, **STREAM),
        "top_k": lambda p: sampling.top_k_sampling_from_probs(p, 50, **STREAM),
        "top_p": lambda p: sampling.top_p_sampling_from_probs(p, 0.95, **STREAM),
        CHAIN: lambda p: sampling.top_k_top_p_sampling_from_probs(p, 50, 0.95, **STREAM),
    }.get(rule)
    return draw and (lambda x: draw(sampling.softmax(x.float(), temperature=temperature)))


def flashinfer_logits_step(rule: str, temperature: float) -> Call | None:
    """FlashInfer 0.6.18 from logits, which it has for two of the rules; it leaves the temperature to its caller."""
    sampling = importlib.import_module("flashinfer.sampling")
    draw: Call | None = {
        "none": lambda x: sampling.sampling_from_logits(x, **STREAM),
        CHAIN: lambda x: sampling.top_k_top_p_sampling_from_logits(x, 50, 0.95, **STREAM),
    }.get(rule)
    return draw and (lambda x: draw(divided(x, temperature)))


def vllm_step(rule: str, temperature: float) -> Call | None:
    """vLLM of August 2026: its Triton kernel, which writes masked logits (float32, in place where it can), and its sampler."""
    kernels = importlib.import_module("vllm.v1.sample.ops.topk_topp_triton")
    sampler = importlib.import_module("vllm.v1.sample.ops.topk_topp_sampler")
    if rule not in ("top_k", "top_p", CHAIN):
        return None

    @functools.cache
    def parameters(batch: int, device: torch.device) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        k = torch.full((batch,), 50, dtype=torch.int32, device=device)
        p = torch.full((batch,), 0.95, dtype=torch.float32, device=device)
        return None if rule == "top_p" else k, None if rule == "top_k" else p

    def step(x: torch.Tensor) -> torch.Tensor:
        # Divided at every temperature, as there: its sampler knows the temperature as a tensor. The logits that all are measured on
        # are thereby left as they were.
        masked = kernels.apply_top_k_top_p_triton(x.float() / temperature, *parameters(len(x), x.device))
        return sampler.random_sample(masked.softmax(-1, dtype=torch.float32), {})

    return step


CANDIDATES: dict[str, Maker] = {
    "fastdecode, cuda": ours("cuda"),
    "fastdecode, triton": ours("triton"),
    "flashinfer": flashinfer_step,
    "flashinfer, logits": flashinfer_logits_step,
    "transformers": transformers_step,
    "transformers, compiled": compiled_step,
    "vllm": vllm_step,
}
assert tuple(CANDIDATES) == WHO
