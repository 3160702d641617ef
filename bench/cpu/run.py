"""`make bench`: verify, measure, write one line of JSON for each case, then render. `--quick` prints and writes nothing.

python -m bench.cpu.run [--quick] [--logits FILE] [--peer MODULE:FUNCTION] [--no-render] [--out FOLDER]

One's own rows and another sampler are measured beside all others and printed; no results of this machine are replaced by them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import fastdecode as fd
from fastdecode.engines import cpu

from .. import RESULTS, machine, plans, rows
from ..records import others_busy, share
from ..timing import SAMPLE_NS, THREADED_SAMPLE_NS, TOGETHER, Candidate, Timing, measure
from . import grid, ours, overhead, peers
from .verify import Verified, verify

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Guests:
    """What `--logits` and `--peer` bring."""

    rows: torch.Tensor | None = None
    peer: peers.Guest | None = None


def measure_group(group: grid.Group, guests: Guests) -> Iterator[dict]:
    """The records of one group: for each rule, shape and question (mask or token)."""
    x = rows.rows(group.rows, group.vocab, group.count) if guests.rows is None else guests.rows[: group.count]
    x = x.to(DTYPES[group.dtype])
    for name in group.rules:
        case = plans.BY_NAME[name]
        plan = case.plan(group.temperature)
        torch.set_num_threads(machine.cores())
        verified = verify(x, plan)
        for batch, threads in group.shapes:
            torch.set_num_threads(threads)
            inputs = [x[i : i + 1] for i in range(len(x))] if batch == 1 else [x[:batch]]
            rounds, budget_ms = (group.rounds, 10.0) if batch == 1 else (group.batch_rounds, 100.0)
            sample_ns = SAMPLE_NS if threads == 1 else THREADED_SAMPLE_NS
            for what in group.whats:
                if what == "mask" and not case.rules:
                    continue  # nothing to do
                candidates = _candidates(group, case, what, threads)
                if guests.peer:
                    candidates += guests.peer.candidates(case, what, group.temperature, group.peer_rows)
                timings = measure(candidates, inputs, rounds, budget_ms, sample_ns)
                _same_tokens(inputs, plan, verified)
                yield _record(group, case, what, batch, threads, verified, timings)


def _candidates(group: grid.Group, case: plans.RuleCase, what: str, threads: int) -> list[Candidate]:
    plan = case.plan(group.temperature)
    engine = ours.sample_engine if what == "token" else ours.truncate_engine
    found = [
        Candidate("one read", ours.read_once, prepare=torch.Tensor.float),
        Candidate("exp pass", ours.exp_pass, prepare=torch.Tensor.float),
        Candidate("engine", engine(plan)),
    ]
    if threads > 1:
        found.append(Candidate("engine, 1 thread", engine(plan, threads=1)))
    if group.dtype != "float32":
        found.append(Candidate("engine, float32", engine(plan), prepare=torch.Tensor.float))
    if what == "token":
        found.append(Candidate("fd.sample", ours.sample(plan)))
    else:
        found.append(Candidate("one copy", ours.copy_once))
        found += [Candidate("fd.truncate", ours.truncate(plan)), Candidate("fd.truncate out=", ours.truncate_out(plan))]
    return found + peers.candidates(case, what, group.temperature, group.peer_rows, group.peers)


def _same_tokens(inputs: list[torch.Tensor], plan: fd.Plan, verified: Verified) -> None:
    """The engine still draws what was verified, after thousands of calls and with this number of threads."""
    for place, x in enumerate(inputs):
        want = verified.tokens_alone[place : place + 1] if len(inputs) > 1 else verified.tokens[: len(x)]
        assert torch.equal(fd.sample(x, plan, seed=ours.SEED, step=ours.STEP).tokens, want), (
            "the engine draws other tokens than it did"
        )


def _record(
    group: grid.Group,
    case: plans.RuleCase,
    what: str,
    batch: int,
    threads: int,
    verified: Verified,
    timings: dict[str, Timing],
) -> dict:
    engine, read = timings["engine"], timings["one read"].median
    summaries = {name: timing.summary() for name, timing in timings.items()}
    own = summaries["engine"]
    kept = verified.kept[:batch] if batch > 1 else verified.kept
    user = timings["fd.sample" if what == "token" else "fd.truncate"]
    others = [name for name in timings if name in peers.NAMES or name.startswith("the peer ")]
    compared = [name for name in ("engine, 1 thread", "engine, float32") if name in timings]
    copy = timings["one copy"].median if what == "mask" else None
    return {
        "what": what, "rule": case.name, "rows": group.rows, "V": group.vocab, "B": batch, "dtype": group.dtype,
        "T": group.temperature, "threads": threads,
        "median_us": own["median"], "p10_us": own["p10"], "p90_us": own["p90"], "slowest_row_us": own["slowest_row"],
        "ratio_to_read": round(engine.median / read, 3),
        "ratio_to_exp_pass": round(engine.median / timings["exp pass"].median, 3),
        "ratio_to_copy": None if copy is None else round(engine.median / copy, 3),
        "slowest_row_ratio_to_copy": None if copy is None or own["slowest_row"] is None else round(own["slowest_row"] / copy, 3),
        "slowest_row_ratio_to_read": None if own["slowest_row"] is None else round(own["slowest_row"] / read, 3),
        "peers_over_engine": {name: round(ratio(timings[name], engine), 3) for name in others + compared},
        "peers_over_call": {name: round(ratio(timings[name], user), 3) for name in others},
        "kept": {"median": int(kept.float().median()), "max": int(kept.max())},
        "verified_rows": len(verified.kept), "edge_tokens": verified.edge_tokens,
        "us_per_row": summaries, "remark": case.remark, **around(),
    }  # fmt: skip


def ratio(slow: Timing, fast: Timing) -> float:
    """Median over the rows that both were timed on; in a batch, of the rounds."""
    pairs = list(zip(slow.per_input, fast.per_input))
    return statistics.median(a / b for a, b in pairs)


def around() -> dict:
    """What every line says about how it came about."""
    return {
        "instruction_set": cpu.build_info()["target"],
        "ceilings": "C++" if ours.NATIVE_CEILINGS else "torch.max and torch.logsumexp: this build has no C++ ceilings",
        "rows_in_turn": TOGETHER,
        **machine.commit(),
        "machine": machine.machine(),
    }


def run(groups: list[grid.Group], show: bool = True, guests: Guests = Guests()) -> list[dict]:
    """Measure all groups and the Python overhead."""
    started, found = time.monotonic(), []
    neighbours = machine.Neighbours()
    for group in groups:
        for record in measure_group(group, guests):
            record["others_busy"] = neighbours.share()
            found.append(record)
            if show:
                print(line(record, time.monotonic() - started), flush=True)
    for record in overhead.measure_overhead(groups[0].vocab):
        found.append({**record, **around(), "others_busy": neighbours.share()})
        if show:
            print(overhead.line(found[-1]), flush=True)
    return found


def line(record: dict, seconds: float) -> str:
    times = ", ".join(f"{name} {entry['median']:.4g}" for name, entry in record["us_per_row"].items())
    where = f"{record['rows']} V={record['V']} B={record['B']} {record['dtype']} T={record['T']:g} threads={record['threads']}"
    return f"{seconds:5.0f} s  {record['rule']}, {record['what']}, {where}: {record['ratio_to_read']:.2f} reads; us per row: {times}"


def write(records: list[dict], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cpu-{machine.short_name()}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu.run", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="five rules at one size in a minute; writes nothing")
    parser.add_argument(
        "--logits",
        metavar="FILE",
        help=f"measure on the first {rows.MOST_ROWS} rows of a .npy or .safetensors file instead",
    )
    parser.add_argument(
        "--peer", metavar="MODULE:FUNCTION", help="time f(logits [B, V], seed) too, where the rule is none and T = 1"
    )
    parser.add_argument(
        "--no-render", action="store_true", help="write the results, but neither docs/results.md nor plots"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the results; bench/results by default, of a run without options"
    )
    given = parser.parse_args(arguments)
    try:
        own_rows = None if given.logits is None else rows.own(given.logits)
        guests = Guests(own_rows, None if given.peer is None else peers.guest(given.peer))
    except ValueError as error:
        parser.error(f"{error}.")
    started = time.monotonic()
    quick_rules = grid.MAIN if guests.peer else grid.MAIN[1:]  # a peer is measured without a rule
    if guests.rows is not None:
        count, vocab = guests.rows.shape
        groups = grid.quick(quick_rules, "own", vocab, count) if given.quick else grid.own(vocab, count)
    else:
        groups = grid.quick(quick_rules) if given.quick else grid.full()
    records = run(groups, guests=guests)
    ordinary = not given.quick and given.logits is None and given.peer is None
    if ordinary or given.out:
        path = write(records, given.out or RESULTS)
        print(f"written: {path}")
        if ordinary and not given.no_render:
            from . import render

            render.main([str(path)])
    print(
        f"{len(records)} records in {time.monotonic() - started:.0f} s; other programs: {share(others_busy(records))} of the machine"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
