"""What the CUDA engine would take on a GPU, PREDICTED from its machine code and from counts of the emulation; beside it what was
measured, where bench/results has a measurement of a GPU.

    python -m bench.gpu.model             prints the tables and writes bench/results/gpu-model.md
    python -m bench.gpu.model --print     prints them only
    python -m bench.gpu.model --budget    prints the budget of the redesign only: half a minute

It needs a build with nvcc, and Triton's package or CUDA for nvdisasm; no GPU. While a kernel is being changed, compile one
architecture alone, in about a minute, and read that:

    nvcc -O3 -std=c++17 -arch=sm_90 -cubin csrc/cuda/launch.cu -o build/launch.cubin
    python -m bench.gpu.model --budget --code build/launch.cubin

Counts come from csrc/ as it is now. Names of functions that the model looks for: bench/gpu/model/engine.py.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
from pathlib import Path

from bench import RESULTS, ROOT
from bench.rows import rows

from . import calibrate, constants, cost, engine, goals
from .calls import VOCAB, Call, counted, predicted

PLANS = goals.NAMES
SHAPES = (
    ("float32", 1),
    ("float32", 8),
    ("float32", 64),
    ("float32", 256),
    ("bfloat16", 1),
    ("bfloat16", 64),
    ("bfloat16", 256),
)
KINDS = ("real", "flat")
# FlashInfer's softmax and the sampler of that rule.
PEER = {"none": ("none", 0), "min_p .05": ("min_p", 0.05), "top_k 50": ("top_k", 50), "top_p .95": ("top_p", 0.95)}


def measured() -> dict[tuple, float]:
    """Our CUDA engine's times in every file of results that names a device."""
    found = {}
    for path in sorted(RESULTS.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line) if line.strip() else {}
            if "device" in record and "cuda" in record.get("who", "") and record["who"].startswith("fastdecode"):
                found[tuple(record.get(name) for name in ("rule", "rows", "dtype", "B", "V", "T"))] = record["us"]
    return found


def page(fat: Path, peer: calibrate.Peer | None) -> str:
    device = constants.H100
    lines = [
        f"# The CUDA engine on an {device.name}: PREDICTED microseconds",
        "",
        "Written by `python -m bench.gpu.model`. **Every number here is a prediction, +-35 % at best, and none was measured,** but for the",
        "last column, which is empty until bench/results holds a measurement of a GPU. One call in a replayed graph, T = 1,",
        f"V = {VOCAB}; rows as bench/rows.py has them. FlashInfer: its softmax and the sampler of that rule, both predicted in the same",
        "way, which makes its samplers up to 2.3 times faster than published: see the last table.",
        "",
        "| rows | plan | dtype | B | blocks a row x waves | block / cluster barriers | groups visited again | one read, predicted | **predicted us** | FlashInfer, predicted us | measured us |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    real = measured()
    for kind, name, (dtype, batch) in itertools.product(KINDS, PLANS, SHAPES):
        call = Call(name, kind, dtype, batch)
        done, ours = counted(call), predicted(fat, call)
        took = real.get((name, kind, dtype, batch, VOCAB, 1.0))
        lines.append(
            f"| {kind} | {name} | {dtype} | {batch} | {call.shape.ranks} x {ours.waves} | {done.block_barriers:.0f} / {done.cluster_barriers:.0f} "
            f"| {done.visits(VOCAB, dtype, call.shape):.0f} | {call.one_read:.1f} | **{ours.us:.0f}** | {_peer(peer, call)} "
            f"| {'' if took is None else f'{took:.1f}'} |"
        )
    return "\n".join([*lines, *_made_of(fat), *_budget(fat), *_calibration(peer)]) + "\n"


@functools.cache
def _probabilities(kind: str):
    return rows(kind, VOCAB, 16).softmax(1)


def _peer(peer: calibrate.Peer | None, call: Call) -> str:
    """It takes float32 only, and has no other rules."""
    if not peer or call.dtype != "float32" or call.plan not in PEER:
        return ""
    us = peer.sampler(*PEER[call.plan], _probabilities(call.kind), call.batch)
    return f"{peer.softmax(call.batch, VOCAB) + us:.0f}"


def _made_of(fat: Path) -> list[str]:
    read, half = cost.costs(fat), cost.costs(fat, "bfloat16")
    odd, odd_half = cost.costs(fat, aligned=False), cost.costs(fat, "bfloat16", False)
    parts = (
        ("a group of 256 tokens in the opening pass, with sums", read.opening, half.opening),
        ("... without sums", read.bare_opening, half.bare_opening),
        ("... of a row that does not start on 16 bytes, with sums", odd.opening, odd_half.opening),
        ("a group that is visited again, mean of the passes", read.visit, half.visit),
        ("... that such a pass leaves out, mean", read.skipped, half.skipped),
        ("a group of masked logits, written", read.writing, half.writing),
        ("from one block barrier to the next, median", read.between_barriers, half.between_barriers),
        ("one token's draw, if all of its group survive", read.draw, half.draw),
    )
    return [
        "",
        f"## What it is made of (predicted, from the {engine.ARCHITECTURE} machine code)",
        "",
        "| | float32: instructions of a warp | cycles of a warp alone | bfloat16: instructions | cycles |",
        "|---|---:|---:|---:|---:|",
        *(f"| {what} | {a.instructions:.0f} | {a.cycles:.0f} | {b.instructions:.0f} | {b.cycles:.0f} |" for what, a, b in parts),
        "",
        "Constants of the device, with their sources: bench/gpu/model/constants.py. Left out: contention of clusters for the L2 cache, and",
        "the overlap of one row's search with the next row's read beyond two blocks a multiprocessor.",
    ]  # fmt: skip


def _budget(fat: Path) -> list[str]:
    return [
        "",
        "## The budget of the redesign",
        "",
        "From machine code, emulation and the model: PREDICTED. `--budget` prints this table alone.",
        "",
        *goals.table(goals.lines(fat)),
    ]


def _calibration(peer: calibrate.Peer | None) -> list[str]:
    head = ["", "## The same reading of kernels whose times are published", ""]
    if peer is None:
        return [
            *head,
            "Not done in this run: `--peer` names their cubin; bench/gpu/model/calibrate.py says how to compile it.",
        ]
    lines = [
        *head,
        "FlashInfer 0.6.18, compiled for sm_90; published in its repository, on a GPU that is not named. A sampler by rejection goes through",
        "a row as often as it must: rounds of the published inputs are simulated. The last column says how far the model is off there.",
        "",
        "| kernel | rows x V, float32 | instructions of a warp a float, each pass | **predicted us** | published us | published / predicted |",
        "|---|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    for case in calibrate.PUBLISHED:
        us = peer.published(case)
        each = " / ".join(f"{n:.1f}" for n in peer.instructions(case))
        lines.append(
            f"| {case.what} | {case.rows} x {case.vocab} | {each} | **{us:.0f}** | {case.us:.1f} | {case.us / us:.1f} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.model", description="Predicted times on a GPU; no GPU is needed."
    )
    parser.add_argument("--print", action="store_true", help="write no file")
    parser.add_argument("--budget", action="store_true", help="the budget of the redesign only; write no file")
    parser.add_argument(
        "--code", type=Path, metavar="FILE", help="an object or cubin; default: what setup.py compiled last"
    )
    parser.add_argument(
        "--peer", type=Path, metavar="CUBIN", help="FlashInfer's samplers, compiled as calibrate.py says"
    )
    options = parser.parse_args()
    fat = options.code or cost.built()
    if fat is None or not fat.exists():
        print(
            f"bench.gpu.model needs the compiled CUDA engine, and {fat or 'build/'} has none; build it with nvcc on PATH.",
            file=sys.stderr,
        )
        return 1
    changed = max(path.stat().st_mtime for path in ROOT.glob("csrc/**/*") if path.is_file())
    if changed > fat.stat().st_mtime:
        print(f"{fat} is older than csrc/, so machine code and counts may differ: compile it again.", file=sys.stderr)
    try:
        if options.budget:
            print("PREDICTED, but for the host's time, which is measured on this CPU; see bench/gpu/model/goals.py.\n")
            print("\n".join(goals.table([*goals.lines(fat), goals.host_line()])))
            return 0
        text = page(fat, calibrate.Peer(constants.H100, options.peer) if options.peer else None)
    except ValueError as error:  # the kernels are not what engine.py says
        print(error, file=sys.stderr)
        return 1
    print(text)
    if not options.print:
        (RESULTS / "gpu-model.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
