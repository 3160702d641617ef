"""One candidate in a process of its own: `python -m bench.gpu.measure` is started by `python -m bench.gpu` and nobody else.

It says on its standard output which case it begins, so that the parent knows where it died, and appends a line for each case to the
results. A wrong answer, a failed capture and an error each are a line as well; what may have spoiled the process ends it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch

from . import clock, stand_in
from .candidates import CANDIDATES, Call, plan_of
from .check import check_engine, check_peer
from .grid import DISTINCT, Case, cases, few
from .lines import append
from .roster import WHO, Ended, engine_of


class Bench:
    def __init__(self, who: str, out: Path, common: dict, eager: set[str]):
        self.who, self.out, self.common, self.eager = who, out, common, eager
        self.l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self.input: tuple = ()

    def say(self, record: dict) -> None:
        append(self.out, {"who": self.who, **self.common, **record})

    def prepare(self, case: Case) -> None:
        """The input of this case, in memory that the caches cannot hold; cases of one input follow each other."""
        if self.input == case.input:
            return
        self.input, self.x, self.inputs = (), torch.empty(0), []  # the old ones are freed first
        self.x = case.logits()
        on_device = self.x.to("cuda")
        self.inputs = clock.copies(on_device.float() if case.converted else on_device, self.l2_bytes)
        self.input = case.input  # not before: memory may not suffice

    def run(self, case: Case) -> Ended:
        """One line of results; none where the candidate has no such rule."""
        record = case.record()
        try:
            began = time.monotonic()
            call = CANDIDATES[self.who](case.rule, case.T)
            if call is None:
                return Ended.DONE
            self.prepare(case)
            record["one_read_us"] = round(self.x.numel() * self.x.element_size() / self.common["copy_bytes_per_us"], 3)
            tokens = call(self.inputs[0])
            torch.cuda.synchronize()
            record["first_call_s"] = round(time.monotonic() - began, 2)
            self.check(case, tokens)
            self.say(record | self.time(call, case.rule))
        except ImportError as error:
            self.say({"missing": first_line(error)})
            return Ended.MISSING
        except clock.CannotCapture as error:
            self.say(record | {"cannot_capture": first_line(error)})
            return Ended.CANNOT_CAPTURE
        except AssertionError as error:
            self.say(record | {"wrong": first_line(error)})
        except Exception as error:  # whatever another package raises
            self.say(record | {"failed": f"{type(error).__name__}: {first_line(error)}"})
            if "CUDA error" in str(error) or "Accelerator" in type(error).__name__:
                return Ended.SPOILED
        return Ended.DONE

    def check(self, case: Case, tokens: torch.Tensor) -> None:
        plan, engine = plan_of(case.rule, case.T), engine_of(self.who)
        if engine:
            check_engine(engine, self.x, plan, masks=False)
        else:
            assert tokens.numel() == case.B, f"{tokens.numel()} tokens for {case.B} rows"
            check_peer(tokens, self.x[:DISTINCT], plan)

    def time(self, call: Call, rule: str) -> dict:
        graph = rule not in self.eager
        hot = [self.inputs[0]] * clock.HOT_CALLS
        found = {
            name: clock.microseconds(call, inputs, graph)
            for name, inputs in (("us_cold", self.inputs), ("us_hot", hot))
        }
        return {**{name: round(us, 3) for name, us in found.items()}, "graph": graph}


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [repr(error)])[0][:300]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.measure", description="One candidate. See python -m bench.gpu."
    )
    parser.add_argument("who", choices=WHO)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--until", type=float, required=True, help="in seconds of time.time(), as loading torch takes some"
    )
    parser.add_argument("--first", type=int, default=0, help="the place of the first case")
    parser.add_argument("--eager", action="append", default=[], help="a rule that cannot be captured")
    options = parser.parse_args(arguments)
    parent = os.getppid()
    dry = stand_in.dry_run()
    common = {
        "device": torch.cuda.get_device_properties(0).name, "torch": torch.__version__, "cuda": torch.version.cuda,
        "copy_bytes_per_us": round(clock.copy_bandwidth(2**20 if dry else 2**30)), **({"dry_run": True} if dry else {}),
    }  # fmt: skip
    bench = Bench(options.who, options.out, common, set(options.eager))
    todo = (few if dry else cases)(peer=engine_of(options.who) is None)
    for place in range(options.first, len(todo)):
        # Without its parent it would go on alone, beside whatever is started next.
        if time.time() > options.until or os.getppid() != parent:
            bench.say({"stopped": f"time was up after {place - options.first} of {len(todo) - options.first} cases"})
            break
        print(place, todo[place].rule, sep="\t", flush=True)
        ended = bench.run(todo[place])
        if ended != Ended.DONE:
            return ended
    return Ended.DONE


if __name__ == "__main__":
    sys.exit(main())
