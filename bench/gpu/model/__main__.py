"""What the CUDA engine would take on a GPU, PREDICTED from its machine code and from counts of the emulation; beside it what was
measured, where bench/results has a measurement of a GPU.

    python -m bench.gpu.model           prints the table and writes bench/results/gpu-model.md
    python -m bench.gpu.model --print   prints it only

It needs a build with nvcc, and Triton's package or CUDA for nvdisasm; no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from bench import RESULTS
from bench.plans import RULES
from bench.rows import rows

from . import calibrate, constants, cost, counts
from .predict import Prediction, predict

VOCAB = 128256
PLANS = ("none", "min_p .05", "top_k 50", "top_p .95", "typical .9", "top_h .4")
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
COUNTED = 2  # rows of each kind


def measured() -> dict[tuple, float]:
    """Our CUDA engine's times in every file of results that names a device."""
    found = {}
    for path in sorted(RESULTS.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line) if line.strip() else {}
            if "device" in record and "cuda" in record.get("who", "") and record["who"].startswith("fastdecode"):
                found[tuple(record.get(name) for name in ("rule", "rows", "dtype", "B", "V", "T"))] = record["us"]
    return found


def predictions() -> Iterator[tuple[str, str, str, int, counts.Counts, Prediction]]:
    fat = cost.built()
    assert fat
    read, device, known = cost.costs(fat), constants.H100, {}
    by_name = {rule.name: rule for rule in RULES}
    for kind in KINDS:
        for name in PLANS:
            for dtype, batch in SHAPES:
                shape = counts.shape(device, dtype, batch, VOCAB)
                key = (kind, name, dtype, shape.ranks)
                if key not in known:
                    x = rows(kind, VOCAB, 16)[:: 16 // COUNTED].to(getattr(torch, dtype)).contiguous()
                    known[key] = counts.of_rows(x, by_name[name].rules, shape.ranks)
                yield (
                    name,
                    kind,
                    dtype,
                    batch,
                    known[key],
                    predict(device, read, known[key], shape, batch, VOCAB, dtype),
                )


def page(peer: Path | None = None) -> str:
    fat = cost.built()
    assert fat
    read, device, real = cost.costs(fat), constants.H100, measured()
    lines = [
        f"# The CUDA engine on an {device.name}: PREDICTED microseconds",
        "",
        "Written by `python -m bench.gpu.model`. **Every number here is a prediction, +-35 % at best, and none was measured,** but for the",
        "last column, which is empty until bench/results holds a measurement of a GPU. One call in a replayed graph, T = 1,",
        f"V = {VOCAB}; rows as bench/rows.py has them.",
        "",
        "| rows | plan | dtype | B | blocks a row x waves | block / cluster barriers | groups visited again | one read, predicted | **predicted us** | measured us |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, kind, dtype, batch, done, predicted in predictions():
        shape = counts.shape(device, dtype, batch, VOCAB)
        size = 4 if dtype == "float32" else 2
        took = real.get((name, kind, dtype, batch, VOCAB, 1.0))
        lines.append(
            f"| {kind} | {name} | {dtype} | {batch} | {shape.ranks} x {predicted.waves} | {done.block_barriers:.0f} / {done.cluster_barriers:.0f} "
            f"| {done.shared_loads * 16 * 32 / (256 * size):.0f} | {batch * VOCAB * size / device.read:.1f} | **{predicted.us:.0f}** "
            f"| {'' if took is None else f'{took:.1f}'} |"
        )
    lines += [
        "",
        f"## What it is made of (predicted, from the {cost.ARCHITECTURE} machine code)",
        "",
        "| | instructions of a warp | cycles of a warp alone |",
        "|---|---:|---:|",
        f"| a group of 256 tokens in the opening pass | {read.opening.instructions:.0f} | {read.opening.cycles:.0f} |",
        f"| a group that is visited again, mean of the passes | {read.visit.instructions:.0f} | {read.visit.cycles:.0f} |",
        f"| from one block barrier to the next, median | {read.between_barriers.instructions:.0f} | {read.between_barriers.cycles:.0f} |",
        f"| one token's draw, if all of its group survive | {read.draw.instructions:.0f} | {read.draw.cycles:.0f} |",
        "",
        f"Fences of device scope in `sample_kernel`: {read.fences} sites. Constants of the device, with their sources: bench/gpu/model/constants.py.",
        "",
        "Left out: contention of clusters for the L2 cache, the overlap of one row's search with the next row's read beyond two blocks a",
        "multiprocessor, rows that do not start on 16 bytes, host time. 16-bit rows are given the instructions of float32 ones.",
        "",
    ]  # fmt: skip
    return "\n".join([*lines, *peers(peer)]) + "\n"


def peers(cubin: Path | None) -> list[str]:
    """FlashInfer's kernels, read in the same way; see calibrate.py."""
    head = ["", "## The same reading of kernels whose times are published", ""]
    if cubin is None:
        return [
            *head,
            "Not done in this run: `--peer` names their cubin; bench/gpu/model/calibrate.py says how to compile it.",
        ]
    rows = [
        f"| {each.published.what} | {each.published.rows} x {each.published.vocab} | {each.vector} | {each.instructions} | **{each.us:.0f}** "
        f"| {each.published.us:.1f} | {each.published.us / each.us:.1f} |"
        for each in calibrate.read(constants.H100, cubin)
    ]
    return [
        *head,
        "FlashInfer 0.6.18, compiled for sm_90; published in its repository, on a GPU that is not named. How often a kernel goes through the",
        "row depends on what it draws: the last column says how many times the published figure would be.",
        "",
        "| kernel | rows x V, float32 | floats a thread, a step | instructions of a warp, a step | **predicted us, once through** | published us | times through |",
        "|---|---|---:|---:|---:|---:|---:|",
        *rows,
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.model", description="Predicted times on a GPU; no GPU is needed."
    )
    parser.add_argument("--print", action="store_true", help="write no file")
    parser.add_argument(
        "--peer", type=Path, metavar="CUBIN", help="FlashInfer's samplers, compiled as calibrate.py says"
    )
    options = parser.parse_args()
    if not cost.built():
        print(
            "bench.gpu.model needs the compiled CUDA engine, and build/ has none; build it with nvcc on PATH.",
            file=sys.stderr,
        )
        return 1
    text = page(options.peer)
    print(text)
    if not options.print:
        (RESULTS / "gpu-model.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
