"""Benchmarks on a GPU: from logits to a token, against peers, and beside it the time of reading the logits once. `make gpu-check`.

    python -m bench.gpu                writes bench/results/<device>.jsonl and prints a short table last
    python -m bench.gpu --quick        few sizes
    python -m bench.gpu --sanitize     a small set of calls for compute-sanitizer, and no timing

Every candidate is captured in one CUDA graph of calls on inputs that rotate through more memory than the L2 cache has; one that
cannot be captured (it waits for the device) is run without, and the record says so. Peers that want probabilities pay for their
softmax. Nothing here has run yet where this was written: there was no GPU.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator

import torch
from cases import cycle

import fastdecode as fd
from fastdecode import dispatch

from .. import ROOT
from ..rows import rows

Call = Callable[[torch.Tensor], object]

RULES = {
    "none": (),
    "min_p": (fd.min_p(0.05),),
    "top_k": (fd.top_k(50),),
    "top_p": (fd.top_p(0.95),),
    "typical": (fd.typical_p(0.9),),
    "top_h": (fd.top_h(0.4),),
    "top_k, top_p, min_p": (fd.top_k(50), fd.top_p(0.95), fd.min_p(0.05)),
}
ROUNDS, REPEATS = 7, 5


def ours(rules: tuple, temperature: float, engine: str) -> Call:
    plan = fd.plan(fd.temperature(temperature), *rules)

    def call(x: torch.Tensor) -> torch.Tensor:
        with dispatch.use(engine):
            return fd.sample(x, plan, seed=1).tokens

    return call


# ---- peers: logits to a token, as their users call them. None: the peer has no such rule. ImportError: it is not installed ------

# FlashInfer and vLLM have no min-p beside top-k and top-p in one call; theirs is then the shorter chain.
CHAIN = "top_k, top_p, min_p"


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
        x = x.float() / temperature
        for warper in made:
            x = warper(None, x)
        return torch.multinomial(x.softmax(-1), 1)

    return step


def compiled_step(rule: str, temperature: float) -> Call | None:
    step = transformers_step(rule, temperature)
    return step and torch.compile(step, dynamic=False)


# With a seed and an offset FlashInfer asks no generator, which is on the host and cannot be captured.
STREAM = {"seed": 1, "offset": 0}


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
    return draw and (lambda x: draw(x.float() / temperature))


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
        masked = kernels.apply_top_k_top_p_triton(x.float() / temperature, *parameters(len(x), x.device))
        return sampler.random_sample(masked.softmax(-1, dtype=torch.float32), {})

    return step


PEERS: dict[str, Callable[[str, float], Call | None]] = {
    "transformers": transformers_step,
    "transformers, compiled": compiled_step,
    "flashinfer": flashinfer_step,
    "flashinfer, logits": flashinfer_logits_step,
    "vllm": vllm_step,
}


class Candidates:
    """Who is measured. One that is not there, or fails, is told in a line once, and left out."""

    def __init__(self) -> None:
        self.told: set[tuple[str, str]] = set()

    def make(self, rule: str, temperature: float) -> Iterator[tuple[str, Call]]:
        for engine in ("cuda", "triton"):
            if engine in dispatch.ENGINES:
                yield f"fastdecode, {engine}", ours(RULES[rule], temperature, engine)
        for name, make in PEERS.items():
            if (name, "") in self.told:
                continue
            try:
                step = make(rule, temperature)
            except Exception as error:  # whatever another package's import can raise
                self.leave_out(name, "", error)
                continue
            if step is not None and (name, rule) not in self.told:
                yield name, step

    def leave_out(self, name: str, rule: str, error: Exception) -> None:
        self.told.add((name, rule))
        said = (str(error).splitlines() or [""])[0]
        print(f"left out: {name}{rule and f', {rule}'}: {type(error).__name__}: {said}", file=sys.stderr)


def microseconds(call: Call, inputs: list[torch.Tensor]) -> tuple[float, bool]:
    """The median time of a call, and whether the calls were replayed from a graph."""
    for x in inputs[:2]:
        call(x)
    torch.cuda.synchronize()
    graph: torch.cuda.CUDAGraph | None = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for x in inputs:
                call(x)
    except RuntimeError:
        graph = None
        torch.cuda.synchronize()
    samples = []
    for _ in range(ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(REPEATS):
            if graph:
                graph.replay()
            else:
                for x in inputs:
                    call(x)
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) * 1000 / (REPEATS * len(inputs)))
    return statistics.median(samples[1:]), graph is not None


def copy_bandwidth() -> float:
    """Bytes a microsecond, read and written by a large copy: what a kernel that reads can hope for."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    time, _ = microseconds(lambda x: target.copy_(x), [source])
    return 2 * source.numel() / time


def measure(quick: bool) -> list[dict]:
    device = torch.cuda.get_device_properties(0)
    bandwidth = copy_bandwidth()
    common = {
        "device": device.name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "copy_bytes_per_us": round(bandwidth),
    }
    found = []
    candidates = Candidates()
    for vocab in (128256,) if quick else (32000, 128256, 262144):
        for kind in ("real",) if quick else ("real", "flat", "peaked"):
            for dtype in (torch.float32, torch.bfloat16):
                for batch in (1, 64) if quick else (1, 8, 64, 256, 512):
                    x = rows(kind, vocab, 64).to("cuda", dtype)
                    x = x.repeat(-(-batch // 64), 1)[:batch]
                    size = x.numel() * x.element_size()
                    copies = max(2, min(64, 3 * device.L2_cache_size // size + 1))
                    inputs = [x.clone() for _ in range(copies)]
                    for rule in RULES:
                        for temperature in (1.0,) if quick else (1.0, 2.0):
                            for name, call in candidates.make(rule, temperature):
                                try:
                                    time, graph = microseconds(call, inputs)
                                except Exception as error:
                                    if name.startswith("fastdecode"):
                                        raise
                                    candidates.leave_out(name, rule, error)
                                    continue
                                case = {
                                    "rule": rule,
                                    "T": temperature,
                                    "rows": kind,
                                    "B": batch,
                                    "V": vocab,
                                    "dtype": str(dtype)[6:],
                                }
                                found.append(
                                    {
                                        **common,
                                        **case,
                                        "who": name,
                                        "us": round(time, 3),
                                        "one_read_us": round(size / bandwidth, 3),
                                        "graph": graph,
                                    }
                                )
    return found


def sanitize() -> None:
    """Every path of the engine once: few and many survivors, aligned and not, each dtype, a batch by row."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for vocab in (1, 257, 5000, 50257):
            for scale in (0.3, 4.0):
                x = (torch.randn(3, vocab, device="cuda") * scale).to(dtype)
                for rules in RULES.values():
                    plan = fd.plan(fd.temperature(cycle((1.0, 0.0, 2.0), 3)), *rules)
                    fd.sample(x, plan, seed=1, num_samples=2, stats=True, top_logprobs=1)
                    fd.truncate(x, plan, out=x.clone())
    torch.cuda.synchronize()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Benchmarks on a GPU.")
    parser.add_argument("--quick", action="store_true", help="few sizes")
    parser.add_argument("--sanitize", action="store_true", help="calls for compute-sanitizer, no timing")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench.gpu needs a CUDA device, and torch sees none.", file=sys.stderr)
        return 1
    if options.sanitize:
        sanitize()
        return 0
    found = measure(options.quick)
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    path = ROOT / "bench" / "results" / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in found))
    print(f"written to {path.relative_to(ROOT)}\n{table(found)}")
    return 0


def table(found: list[dict]) -> str:
    """Microseconds a call on real rows of 128256 at T = 1, a column for each candidate; "*": no graph could be captured."""
    shown = [r for r in found if (r["rows"], r["V"], r["T"]) == ("real", 128256, 1.0)]
    whos = list(dict.fromkeys(r["who"] for r in shown))
    lines: dict[tuple, dict[str, str]] = {}
    for r in shown:
        line = lines.setdefault((r["rule"], r["dtype"], r["B"]), {"one read": f"{r['one_read_us']:.1f}"})
        line[r["who"]] = f"{r['us']:.1f}{'' if r['graph'] else '*'}"
    width = max(map(len, ("one read", *whos)), default=8) + 2
    head = f"{'rule':20}{'dtype':10}{'B':>4}" + "".join(f"{who:>{width}}" for who in ("one read", *whos))
    return "\n".join([head, *(
        f"{rule:20}{dtype:10}{batch:>4}" + "".join(f"{line.get(who, '-'):>{width}}" for who in ("one read", *whos))
        for (rule, dtype, batch), line in lines.items()
    )])  # fmt: skip
