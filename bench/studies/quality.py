"""Creativity against coherence: what each rule writes with SmolLM2-135M-Instruct at T = 0.7, 1, 1.5 and 2.

    python -m bench.studies.quality [--minutes 20]        goes on where it was stopped; writes results/quality.{jsonl,md,png}

8 prompts x 8 samples x 48 tokens for each rule and temperature, float32, all from the same noise, so that texts differ because of
the rule. Each measure is taken of the samples of one prompt and then averaged over prompts (the error is that of this average):

    likelihood   mean ln p of a token under the model at temperature 1, without any rule: how the model itself likes the text
    distinct-n   different n-grams of tokens over all n-grams (after arXiv 1510.03055)
    self-BLEU    mean BLEU-4 of each sample against the other ones (arXiv 1802.01886): 1 is eight copies, 0 has nothing in common

Likelihood is not quality: greedy loops have the best. It says only whether a text fell apart. N-grams are of the model's tokens, without
the end token. So there is a fourth, nearer to the papers' GSM8K: the share of right answers to 24 sums of one step, 8 samples each
(those of temperature_scaling.py).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

import fastdecode as fd
from fastdecode import hf, plotting
from fastdecode.cli import generate
from fastdecode.scaling import selection, texts

from .. import RESULTS
from .temperature_scaling import EXAMPLES, problems

TEMPERATURES = (0.7, 1.0, 1.5, 2.0)
RULES = {
    "none": fd.plan(),
    "top_p .95": fd.plan(fd.top_p(0.95)),
    "typical .9": fd.plan(fd.typical_p(0.9)),
    "min_p .1": fd.plan(fd.min_p(0.1)),
    "top_h .4": fd.plan(fd.top_h(0.4)),
    "top_h .4 hf": fd.plan(fd.top_h(0.4, variant="hf")),
}
ROUND, ROUNDS = 4, 2  # samples of a prompt and temperature in one batch; batches
TOKENS = 48
SEED = 1
LEAST = -4.5  # nats: the left end of the lower panels
PROMPTS = (
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Write a poem about the first snow of the year.",
    "Describe a city that nobody has visited yet.",
    "Invent an animal and tell me how it lives.",
    "Tell me about a dream that came true.",
    "Write the opening of a mystery set on a train.",
    "Describe the best meal you can imagine.",
    "Write a letter from an old tree to the people of the village.",
)
SUMS = problems(24)
AT_ONCE = 8  # of them in one batch
MEASURES = ("likelihood", "distinct-1", "distinct-2", "distinct-3", "self-BLEU", "right")
FOLDER = RESULTS / "quality"


# ---- measures: of the samples of one prompt, as lists of token ids -----------------------------------------------------


def grams(tokens: Sequence[int], n: int) -> Counter:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def distinct(samples: Iterable[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams of the samples together; NaN if there are none."""
    seen: Counter = sum((grams(tokens, n) for tokens in samples), Counter())
    return len(seen) / seen.total() if seen else math.nan


def bleu(tokens: Sequence[int], others: Sequence[Sequence[int]], longest: int = 4) -> float:
    """Sentence BLEU: the geometric mean of the clipped precisions of n-grams, times the penalty for being shorter than the other
    that is nearest in length. Above n = 1 each count has one added, or a single missing 4-gram would make it 0."""
    if not tokens:
        return 0.0
    logs = []
    for n in range(1, longest + 1):
        own, allowed = grams(tokens, n), Counter()
        for other in others:
            allowed |= grams(other, n)
        added = int(n > 1)
        hits, all_of_them = (own & allowed).total() + added, own.total() + added
        logs.append(math.log(hits / all_of_them) if hits else -math.inf)
    nearest = min((abs(len(other) - len(tokens)), len(other)) for other in others)[1]
    return math.exp(fmean(logs) + min(0.0, 1 - nearest / len(tokens)))


def self_bleu(samples: Sequence[Sequence[int]]) -> float:
    return fmean(bleu(tokens, [*samples[:i], *samples[i + 1 :]]) for i, tokens in enumerate(samples))


def measured(samples: Sequence[texts.Text], ends: set[int]) -> dict[str, float]:
    tokens = [[t for t in text.tokens if t not in ends] for text in samples]
    found = {"likelihood": sum(text.raw_logprob for text in samples) / sum(len(text.tokens) for text in samples)}
    found |= {f"distinct-{n}": distinct(tokens, n) for n in (1, 2, 3)}
    return found | {"self-BLEU": self_bleu(tokens), "tokens": fmean(map(len, tokens))}


# ---- texts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Prompts that are sampled in one batch."""

    name: str
    prompts: Sequence[str]
    answers: Sequence[str] = ()  # of sums; stories have none

    def inputs(self, tokenizer: Any) -> Any:
        tokenizer.padding_side = "left"
        if self.answers:
            return tokenizer(
                [f"{EXAMPLES}Q: {question}\nA:" for question in self.prompts], padding=True, return_tensors="pt"
            )
        turns = [[{"role": "user", "content": prompt}] for prompt in self.prompts]
        return tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )


def tasks() -> list[Task]:
    sums = [SUMS[i : i + AT_ONCE] for i in range(0, len(SUMS), AT_ONCE)]
    return [Task("stories", PROMPTS)] + [Task(f"sums-{i}", *zip(*own)) for i, own in enumerate(sums)]


def written(loaded: generate.Loaded, task: Task, rule: str, number: int) -> list[texts.Text]:
    """One batch of a rule: ROUND samples of every prompt at every temperature, from the file or from the model."""
    file = FOLDER / f"{task.name}-{rule.replace(' ', '-')}-{number}.jsonl"
    if not file.exists():
        options: dict[str, Any] = (
            {"max_new_tokens": 16, "stop_strings": "\n"} if task.answers else {"max_new_tokens": TOKENS}
        )
        made = hf.generate_temperatures(
            loaded.model, task.inputs(loaded.tokenizer), TEMPERATURES, ROUND, RULES[rule], SEED, tokenizer=loaded.tokenizer,
            first_sample=ROUND * number, progress=False, **options,
        )  # fmt: skip
        FOLDER.mkdir(parents=True, exist_ok=True)
        texts.save(made, file)
    return texts.load(file)


def records_of(task: Task, rule: str, made: list[texts.Text], ends: set[int]) -> list[dict]:
    """One for each temperature and prompt."""

    def key(text: texts.Text) -> tuple[float, int]:
        return text.temperature, text.prompt

    records = []
    for (t, prompt), group in groupby(sorted(made, key=key), key):
        own = list(group)
        if task.answers:
            right = [selection.last_answer(text.text) == task.answers[prompt] for text in own]
            found = {"right": fmean(right)}
        else:
            found = measured(own, ends)
        records.append({"rule": rule, "T": t, "prompt": task.prompts[prompt], **found})
    return records


# ---- table and figure --------------------------------------------------------------------------------------------------


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    return fmean(values), stdev(values) / math.sqrt(len(values))


def shown(values: Iterable[float], sign: str = "") -> str:
    mean, error = mean_and_error(list(values))
    return f"{mean:{sign}.2f} ± {error:.2f}"


def values(records: list[dict], rule: str, t: float, name: str) -> dict[str, float]:
    """A measure of each prompt that has it."""
    return {r["prompt"]: r[name] for r in records if (r["rule"], r["T"]) == (rule, t) and name in r}


def table(records: list[dict]) -> str:
    """Means over prompts with their errors, and how many tokens a text has."""
    lines = []
    for t in TEMPERATURES:
        lines += [f"**T = {t:g}**", "", f"| rule | {' | '.join(MEASURES)} | tokens |"]
        lines.append("|---|" + "---:|" * (len(MEASURES) + 1))
        for rule in RULES:
            cells = [shown(values(records, rule, t, name).values()) for name in MEASURES]
            tokens = fmean(values(records, rule, t, "tokens").values())
            lines.append(f"| `{rule}` | {' | '.join(cells)} | {tokens:.0f} |")
        lines.append("")
    return "\n".join(lines)


def comparisons(records: list[dict]) -> str:
    """The papers' order at high temperature is Top-H, min-p, top-p: the differences of neighbours, prompt by prompt."""
    names = ("likelihood", "distinct-2", "self-BLEU", "right")
    lines = [f"| T | | {' | '.join(names)} |", "|---:|---|" + "---:|" * len(names)]
    pairs = (
        ("top_h .4", "min_p .1"),
        ("top_h .4 hf", "min_p .1"),
        ("min_p .1", "top_p .95"),
        ("typical .9", "top_p .95"),
    )
    for t in TEMPERATURES:
        for one, other in pairs:
            cells = []
            for name in names:
                mine, its = values(records, one, t, name), values(records, other, t, name)
                cells.append(shown([mine[prompt] - its[prompt] for prompt in mine], "+"))
            lines.append(f"| {t:g} | `{one}` less `{other}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(records: list[dict], path: Path) -> None:
    """Above: each measure against temperature, with its errors. Below: creativity against coherence."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    likelihood = "mean ln p of a token (nats)"
    pairs, shared = "distinct-2: share of new pairs of tokens", "1 - self-BLEU: how little samples share"
    figure, panels = pyplot.subplots(2, 3, figsize=(15, 9), layout="constrained")
    looks = plotting.looks(list(RULES.values()))
    for rule, chain in RULES.items():
        found, style = {}, looks[chain]
        for name in ("likelihood", "distinct-2", "right", "self-BLEU"):
            own = [list(values(records, rule, t, name).values()) for t in TEMPERATURES]
            found[name], found[name + " error"] = zip(*map(mean_and_error, own))
        unlike = [1 - y for y in found["self-BLEU"]]
        look = {"color": style.color, "marker": style.marker, "markersize": 7, "linestyle": style.dashes}
        for panel, name in zip(panels[0], ("likelihood", "distinct-2", "right")):
            panel.errorbar(TEMPERATURES, found[name], found[name + " error"], label=rule, capsize=3, **look)
        panels[1, 0].plot(found["likelihood"], found["distinct-2"], **look)
        panels[1, 1].plot(found["likelihood"], unlike, **look)
    for panel, label in zip(panels[0], (likelihood, pairs, f"share of right answers to {len(SUMS)} sums")):
        panel.set(xlabel="temperature", ylabel=label, xticks=TEMPERATURES)
    for panel, label in zip(panels[1], (pairs, shared)):
        ends = f"T = {TEMPERATURES[-1]:g} on the left, {TEMPERATURES[0]:g} on the right"
        panel.set(xlabel=f"coherence: {likelihood}", ylabel=label, title=f"each line: {ends}")
        panel.set_xlim(left=max(panel.get_xlim()[0], LEAST))  # what fell apart lies far to the left
    for panel in panels.flat:
        panel.grid(True, alpha=0.3)
    panels[1, 2].axis("off")
    panels[1, 2].legend(*panels[0, 0].get_legend_handles_labels(), loc="center", fontsize=13)
    what = f"{len(PROMPTS)} prompts x {ROUND * ROUNDS} samples x {TOKENS} tokens"
    figure.suptitle(
        f"SmolLM2-135M-Instruct, {what}; ln p is the model's own at T = 1; bars: error of the mean over prompts"
    )
    figure.savefig(path, dpi=100, metadata={"Software": None})
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=float, default=20, help="start no new batch after so long; a later run goes on"
    )
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    loaded = generate.load(None, None)
    ends = hf.temperatures._end_tokens(loaded.model, None)
    records = []
    for task in tasks():
        for rule in RULES:
            made = []
            for number in range(ROUNDS):
                if time.monotonic() > end:
                    print(f"stopped before {task.name}, {rule}, batch {number + 1}; run again to go on")
                    return 1
                made += written(loaded, task, rule, number)
            records += records_of(task, rule, made, ends)
    (RESULTS / "quality.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    words = f"{table(records)}\n**The papers' order, prompt by prompt**\n\n{comparisons(records)}"
    (RESULTS / "quality.md").write_text(words, encoding="utf-8")
    draw(records, RESULTS / "quality.png")
    print(words)
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
