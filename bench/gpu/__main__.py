"""The benchmark on a GPU: from logits to a token, against peers, and beside it the time of reading the logits once.

    python -m bench.gpu                       every candidate, five minutes together
    python -m bench.gpu --seconds 60 --only "fastdecode, cuda"

Every candidate has a process of its own, so that an error of the device, a failed capture or a crash takes that process alone. The
results are lines of JSON, each on the disk before the next case begins; a table is printed last. No figure that it gives has been
seen yet: there was no GPU where this was written.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from .. import ROOT
from . import table
from .lines import append, read
from .roster import FAULTS, WHO, Ended, engine_of

GRACE = 5.0  # seconds over its time that a process may take to stop by itself
RESTARTS = 8  # of one candidate


def measured(who: str, out: Path, seconds: float) -> int:
    """All processes of one candidate, one after the other. How the last one ended."""
    until, first, eager, ended = time.time() + seconds, 0, set(), int(Ended.DONE)
    for _ in range(RESTARTS):
        if time.time() > until:
            break
        place, rule, ended = one_process(who, out, until, first, eager)
        first = place + 1
        if ended == Ended.CANNOT_CAPTURE:
            eager.add(rule)
            first = place  # once more, without a graph
        elif ended in (Ended.DONE, Ended.MISSING, Ended.OUT_OF_TIME):
            break
        elif ended != Ended.SPOILED:  # which has said so itself
            append(out, {"who": who, "rule": rule, "place": place, "died": how(ended)})
            if place < 0:  # not even the first case began
                break
    return ended


def one_process(who: str, out: Path, until: float, first: int, eager: set[str]) -> tuple[int, str, int]:
    """The last case that it began, by place and rule, and how it ended."""
    command = [
        sys.executable,
        "-m",
        "bench.gpu.measure",
        who,
        "--out",
        str(out),
        "--until",
        str(until),
        "--first",
        str(first),
    ]
    command += [word for rule in sorted(eager) for word in ("--eager", rule)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    killed = False
    try:
        said, _ = child.communicate(timeout=max(0.0, until - time.time()) + GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        said, _ = child.communicate()
        killed = True
        append(out, {"who": who, "stopped": f"killed {GRACE:.0f} s after its time was up"})
    finally:
        if child.poll() is None:  # this process is being ended itself
            os.killpg(child.pid, signal.SIGKILL)
    begun = [line.split("\t") for line in said.splitlines() if "\t" in line]
    place, rule = begun[-1] if begun else ("-1", "")
    return int(place), rule, Ended.OUT_OF_TIME if killed else child.returncode


def how(code: int) -> str:
    """An exit code in words."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="The benchmark on a GPU.")
    parser.add_argument("--seconds", type=float, default=300, help="for all candidates together")
    parser.add_argument("--only", action="append", choices=WHO, help="a candidate; may be given again")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "gpu-bench.jsonl", help="results are appended here"
    )
    options = parser.parse_args(arguments)
    whos = options.only or list(WHO)
    before, end = len(read(options.out)), time.monotonic() + options.seconds
    ended = []
    for place, who in enumerate(whos):
        # What one candidate leaves of its share is shared by those after it.
        ended.append(measured(who, options.out, (end - time.monotonic()) / (len(whos) - place)))
    records = read(options.out)[before:]
    print(table.table(records))
    if any(kind in r for r in records for kind in FAULTS if engine_of(r["who"])):
        return Ended.FAILED
    return Ended.MISSING if set(ended) == {Ended.MISSING} else Ended.DONE


if __name__ == "__main__":
    sys.exit(main())
