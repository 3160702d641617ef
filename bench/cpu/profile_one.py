"""One rule over and over for a sampling profiler, which shows where the engine's time goes, function by function.

perf record -F 4000 -e cpu-clock -o /tmp/perf.data python -m bench.cpu.profile_one "top_p .95" --temperature 2
perf report -i /tmp/perf.data --stdio --no-children
"""

from __future__ import annotations

import argparse
import time

import torch

from .. import plans, rows
from . import grid, ours


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu.profile_one", description=__doc__.splitlines()[0])
    parser.add_argument("rule", choices=sorted(plans.BY_NAME))
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--vocab", type=int, default=grid.V_MAIN)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bind = ours.sample_engine(plans.BY_NAME[given.rule].plan(given.temperature))
    calls = [bind(row[None]) for row in rows.rows("real", given.vocab, 16)]
    end = time.monotonic() + given.seconds
    while time.monotonic() < end:
        for call in calls:  # in turn: the branches of a row that comes again at once are known by heart
            call()


if __name__ == "__main__":
    main()
