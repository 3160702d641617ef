"""What several temperatures cost together: drawn from one row, and decoded behind one prefill.

python -m bench.studies.temperatures [--model]     prints; one thread, candidates in turn; --model adds the prefill, a minute
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter

import torch

import fastdecode as fd
from fastdecode import hf
from fastdecode.cli import generate

from ..rows import rows
from ..timing import Candidate, measure

TEMPERATURES = tuple(i / 5 for i in range(1, 9))
PLANS = {
    "none": fd.plan(),
    "min_p .05": fd.plan(fd.min_p(0.05)),
    "top_k 50": fd.plan(fd.top_k(50)),
    "top_h .4": fd.plan(fd.top_h(0.4)),
}


def together(plan: fd.Plan) -> Callable:
    return lambda x: lambda: fd.sample_temperatures(x, TEMPERATURES, plan, seed=1)


def separate(plan: fd.Plan) -> Callable:
    plans = [plan.at(t) for t in TEMPERATURES]
    return lambda x: lambda: [fd.sample(x, each, seed=1) for each in plans]


def sampling() -> None:
    print(f"{len(TEMPERATURES)} temperatures, one row, one sample each; microseconds, median over 16 rows\n")
    print("| rule | V | together | separate calls | times faster |\n|---|---:|---:|---:|---:|")
    for vocab in (49152, 128256):
        for name, plan in PLANS.items():
            candidates = [Candidate("together", together(plan)), Candidate("separate", separate(plan))]
            x = rows("real", vocab, 16)
            found = measure(candidates, [x[i : i + 1] for i in range(len(x))], rounds=7)
            one, each = found["together"].median, found["separate"].median
            print(f"| {name} | {vocab} | {one:.0f} | {each:.0f} | {each / one:.1f} |")


def prefill(prompt: int = 96, texts: int = 16, new: int = 8) -> None:
    """The same texts, behind one prompt and behind as many copies of it."""
    model = generate.load(None, None).model
    ids = torch.randint(100, 40000, (prompt,), generator=torch.Generator().manual_seed(0))
    options = {"plan": PLANS["min_p .05"], "seed": 1, "max_new_tokens": new, "eos_token_id": []}
    found: dict[str, list[float]] = {"one prefill": [], "repeated prompts": []}
    for _ in range(3):
        for name, inputs, samples in (("one prefill", ids, texts), ("repeated prompts", ids.repeat(texts, 1), 1)):
            start = perf_counter()
            hf.generate_temperatures(model, inputs, [0.8], samples, **options)
            found[name].append(perf_counter() - start)
    one, each = (sorted(taken)[1] for taken in found.values())
    print(f"\n{texts} texts of {new} tokens after a prompt of {prompt}, SmolLM2-135M in float32: "
          f"{one:.2f} s behind one prefill, {each:.2f} s behind {texts} of them, {each / one:.1f} times as long.")  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    sampling()
    if "--model" in sys.argv[1:]:
        prefill()
