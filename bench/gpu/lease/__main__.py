"""Everything that a GPU machine is wanted for, in one command: `make gpu-lease`, on a bare machine without a network.

Nothing is installed and no file of the checkout is changed. The stages are those of stages.py; what one finds is on the disk before the
next one begins. `make gpu-lease DRY=1` runs all of them on a machine without a GPU, with stand-ins (bench/gpu/stand_in.py).
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from ... import ROOT
from ..lines import read
from ..table import DRY_RUN, table
from .stages import Run, stages

RESULTS = ("stages.jsonl", "facts.jsonl", "smoke.jsonl", "bench.jsonl", "table.txt", "log.txt")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.lease", description="All that a GPU machine is wanted for."
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-lease", help="the folder of the results")
    parser.add_argument("--seconds", type=float, default=470, help="for all stages together")
    parser.add_argument(
        "--dry", action="store_true", help="without a GPU, with stand-ins: no time that it gives means anything"
    )
    parser.add_argument("--only", action="append", help="a stage; may be given again")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    _put_aside(out)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("gpu-lease was ended; what it has found so far is in " + str(out))
    )
    run = Run(out, time.monotonic() + options.seconds, options.dry)
    planned = stages(out, options.dry)
    if unknown := set(options.only or ()) - {stage.name for stage in planned}:
        parser.error(
            f"--only must name one of {', '.join(stage.name for stage in planned)}; got {', '.join(sorted(unknown))}."
        )
    for stage in planned:
        if options.only and stage.name not in options.only:
            continue
        ended = run.stage(stage)
        _write_table(out, options.dry)
        if stage.name == "facts" and ended.startswith("failed: exit code"):
            print("gpu-lease needs a CUDA device that torch sees; without one, make gpu-lease DRY=1 rehearses it.")
            return 1
    print((out / "table.txt").read_text(encoding="utf-8"), f"results: {out}", sep="\n")
    return int(any(ended.startswith("failed") for ended in run.ended.values()))


def _put_aside(out: Path) -> None:
    """The results of an earlier run stay, in a folder of their own."""
    there = [out / name for name in RESULTS if (out / name).exists()]
    if there:
        aside = out / f"earlier-{sum(1 for _ in out.glob('earlier-*')) + 1}"
        aside.mkdir()
        for path in there:
            path.rename(aside / path.name)


def _write_table(out: Path, dry: bool) -> None:
    smoke = read(out / "smoke.jsonl")
    wrong = [r for r in smoke if "wrong" in r or "failed" in r]
    text = DRY_RUN if dry else ""
    text += "".join(f"{r['stage']:28}{r['s']:6.1f} s  {r['ended']}\n" for r in read(out / "stages.jsonl"))
    text += "".join(f"{name}: {value}\n" for r in read(out / "facts.jsonl") for name, value in r.items())
    text += f"smoke: {len(smoke)} lines, {len(wrong)} of them wrong\n" + "".join(f"{r}\n" for r in wrong[:20])
    (out / "table.txt").write_text(text + "\n" + table(read(out / "bench.jsonl")), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
