"""Tokens per second of `generate` with a real model on the CPU: transformers alone, with our processor, and in our loop.

python -m bench.studies.generate [--quick] [--out FOLDER]

Each step is split at moments that all loops have. **model** is the time in the forward pass. **sampling** begins when transformers
has put the model's new cache aside, with the logits, and ends when the stopping criteria are asked, with a token for each row (one
criterion of transformers, the length, is asked before the clock's). **rest** is all else, and transformers' own in all loops. All
figures are medians over steps, the prompt's left out. The ways take turns, text after text. One line of JSON for each rule, batch
size and way; the table of docs/results.md comes from those.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.generation import StoppingCriteria

import fastdecode as fd
from fastdecode import hf
from fastdecode.cli import generate

from .. import RESULTS, machine, page
from ..records import share

MARKERS = page.markers("generate", "python -m bench.studies.generate")
RAW = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
# What generate() is told, and the same as a plan.
RULES: dict[str, tuple[dict[str, float], fd.Plan]] = {
    "none": ({}, fd.plan()),
    "min_p .05": ({"min_p": 0.05}, fd.plan(fd.min_p(0.05))),
    "top_p .95": ({"top_p": 0.95}, fd.plan(fd.top_p(0.95))),
    "typical .9": ({"typical_p": 0.9}, fd.plan(fd.typical_p(0.9))),
    "top_h .4": ({"top_h": 0.4}, fd.plan(fd.top_h(0.4, variant="hf"))),
}
WAYS = ("transformers", "our processor", "our loop")
PROMPT = "Write a short story about a lighthouse keeper who finds a letter."


class Clock(StoppingCriteria):
    """Notes when each forward pass begins and ends, when its cache is put aside, and when the token of the step is known."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.left: list[float] = []
        self.ready: list[float] = []
        self.known: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.known.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def around(self, method: Callable, begun: list[float], left: list[float]) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun.append(time.perf_counter())
            found = method(*args, **kwargs)
            left.append(time.perf_counter())
            return found

        return timed

    def steps(self) -> list[tuple[float, float, float]]:
        """Seconds of model, sampling and rest of each step but the first; the last has no rest, and is left out."""
        moments = list(zip(self.begun, self.left, self.ready, self.known))
        following = self.begun[1:]
        found = [
            (left - begun, known - ready, (ready - left) + (then - known))
            for (begun, left, ready, known), then in zip(moments, following)
        ]
        return found[1:]


def asked(rule: str, way: str) -> dict[str, Any]:
    """The arguments of generate()."""
    options, plan = RULES[rule]
    if way == "our processor":
        return {**RAW, "logits_processor": [hf.FusedLogitsProcessor(plan)] if plan.rules else []}
    return {**RAW, **options} | ({"custom_generate": hf.sample} if way == "our loop" else {})


def steps_of(
    loaded: generate.Loaded, inputs: dict, rule: str, way: str, tokens: int
) -> list[tuple[float, float, float]]:
    clock, model = Clock(), loaded.model
    update = model._update_model_kwargs_for_generation
    own = {
        "forward": clock.around(model.forward, clock.begun, clock.left),
        "_update_model_kwargs_for_generation": clock.around(update, [], clock.ready),
    }
    own["forward"].__signature__ = inspect.signature(model.forward)  # type: ignore[attr-defined]
    vars(model).update(own)
    try:
        made = model.generate(
            **inputs, **asked(rule, way), do_sample=True, eos_token_id=None, pad_token_id=0, max_new_tokens=tokens,
            min_new_tokens=None, stopping_criteria=[clock],
        )  # fmt: skip
    finally:
        for name in own:
            del vars(model)[name]
    if made.shape[1] != inputs["input_ids"].shape[1] + tokens or len(clock.known) != tokens:
        raise SystemExit(f"{way} wrote {made.shape[1] - inputs['input_ids'].shape[1]} tokens, not {tokens}")
    return clock.steps()


def run(loaded: generate.Loaded, batches: dict[int, int], rounds: int, rules: list[str]) -> list[dict]:
    """The records; `batches` gives the tokens to write for each batch size."""
    found = []
    neighbours = machine.Neighbours()
    encoded = generate.encode(loaded, PROMPT, 0, chat=True)
    torch.set_num_threads(machine.cores())
    for batch, tokens in batches.items():
        inputs = {name: value.repeat(batch, 1) for name, value in encoded.items()}
        for rule in rules:
            steps: dict[str, list] = {way: [] for way in WAYS}
            for turn in range(rounds + 1):
                for way in WAYS:
                    torch.manual_seed(turn)
                    new = steps_of(loaded, inputs, rule, way, tokens if turn else 3)  # the first turn warms up
                    steps[way] += new if turn else []
            busy = neighbours.share()
            for way in WAYS:
                found.append(record(loaded, rule, way, batch, steps[way], steps[WAYS[0]], busy))
                print(line(found[-1]), flush=True)
    return found


def record(
    loaded: generate.Loaded, rule: str, way: str, batch: int, steps: list, baseline: list, busy: float | None
) -> dict:
    columns = list(zip(*steps))
    model, sampling, rest = (statistics.median(column) for column in columns)
    ordered = sorted(columns[1])
    return {
        "what": "generate", "model": loaded.name, "rule": rule, "way": way, "B": batch, "dtype": "float32",
        "V": loaded.model.config.vocab_size, "threads": torch.get_num_threads(), "steps": len(steps),
        "tokens_per_s": round(batch / statistics.median(map(sum, steps)), 2),
        "model_ms": round(model * 1e3, 3), "sampling_ms": round(sampling * 1e3, 4), "rest_ms": round(rest * 1e3, 4),
        "sampling_p10_ms": round(ordered[len(ordered) // 10] * 1e3, 4),
        "sampling_p90_ms": round(ordered[len(ordered) * 9 // 10] * 1e3, 4),
        "transformers_sampling_over_this": round(statistics.median(s[1] for s in baseline) / sampling, 2),
        "others_busy": busy, **machine.commit(), "machine": machine.machine(),
    }  # fmt: skip


def line(r: dict) -> str:
    return (
        f"B={r['B']} {r['rule']:11} {r['way']:13} {r['tokens_per_s']:7.2f} tokens/s; ms per step: model {r['model_ms']:.1f}, "
        f"sampling {r['sampling_ms']:.3f}, rest {r['rest_ms']:.3f}; transformers' sampling takes {r['transformers_sampling_over_this']:.1f} times that"
    )


def section(records: list[dict], path: Path) -> str:
    """What docs/results.md says."""
    about, busy = records[0]["machine"], [r["others_busy"] for r in records if r["others_busy"] is not None]
    text = [
        f"{records[0]['model']}, V = {records[0]['V']}, float32, {records[0]['threads']} threads on {about['cpu']}; torch "
        f"{about['torch']}, transformers {about['transformers']}; commit {records[0]['commit'][:12]}"
        f"{' with changes' if records[0]['dirty'] else ''}. Other programs took {share(statistics.mean(busy) if busy else None)} of the "
        f"machine meanwhile. All figures: [{path.name}]({page.link(path)}).",
        "Milliseconds per step, medians. **Sampling** is the time from the model's logits to a known token for every row of the batch. "
        "**Rest** is transformers' own bookkeeping. **Gain** is transformers' sampling over ours. The model takes most of a step here, so "
        "tokens per second gain at most what sampling took before.",
        "| batch | rule | way | model | sampling | rest | gain | tokens/s |\n| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in records:
        gain = "" if r["way"] == WAYS[0] else f"{r['transformers_sampling_over_this']:.1f}"
        text[-1] += (
            f"\n| {r['B']} | `{r['rule']}` | {r['way']} | {r['model_ms']:.1f} | {r['sampling_ms']:.3f} | {r['rest_ms']:.3f} "
            f"| {gain} | {r['tokens_per_s']:.2f} |"
        )
    return "\n\n".join(text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.studies.generate", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rules in a minute; writes nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    given = parser.parse_args(arguments)
    loaded = generate.load(None, None)
    if given.quick:
        run(loaded, {1: 12}, 1, ["none", "top_p .95"])
        return 0
    records = run(loaded, {1: 24, 8: 10}, 2, list(RULES))
    path = given.out / f"generate-{machine.short_name()}.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    page.write(section(records, path), MARKERS)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
