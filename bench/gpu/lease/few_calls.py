"""Few calls of the CUDA engine, for tools that slow a kernel down a hundred times.

python -m bench.gpu.lease.few_calls             every rule on four shapes, for compute-sanitizer
python -m bench.gpu.lease.few_calls top_p 64    three calls of one kernel, for ncu
"""

from __future__ import annotations

import sys

import torch

import fastdecode as fd
from fastdecode import dispatch
from tests.support.cases import cycle, normal

from .. import stand_in
from ..candidates import RULES, plan_of
from ..grid import Case

# V, B, dtype, scale: a row of one group and of many, odd rows, few survivors and many.
SHAPES = (
    (257, 3, torch.float16, 4.0),
    (5000, 3, torch.float32, 0.3),
    (50257, 2, torch.bfloat16, 4.0),
    (128256, 1, torch.float32, 0.3),
)


def every_rule(shapes: tuple) -> int:
    calls = 0
    for vocab, batch, dtype, scale in shapes:
        x = normal(batch, vocab, scale, vocab).to("cuda", dtype)
        for rules in RULES.values():
            plan = fd.plan(fd.temperature(cycle((1.0, 0.0, 2.0), batch)), *rules)
            fd.sample(x, plan, seed=1, num_samples=2, stats=True, top_logprobs=1)
            fd.truncate(x, plan, out=x.clone())
            calls += 2
    torch.cuda.synchronize()
    return calls


def one_kernel(rule: str, batch: int, case: Case) -> int:
    x = case.logits().to("cuda")
    for _ in range(3):
        fd.sample(x, plan_of(rule, 1.0), seed=1)
    torch.cuda.synchronize()
    return 3


def main(arguments: list[str]) -> int:
    dry = stand_in.dry_run()
    if "cuda" not in dispatch.ENGINES:
        print(f"no CUDA engine: {dispatch.MISSING['cuda']}")
        return 1
    with dispatch.use("cuda"):
        if arguments:
            rule, batch = arguments[0], int(arguments[1])
            calls = one_kernel(rule, batch, Case(rule, V=1000, B=batch) if dry else Case(rule, B=batch))
        else:
            calls = every_rule(SHAPES[:1] if dry else SHAPES)
    print(f"{calls} calls")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
