"""Do many temperatures solve what one does not? SmolLM2-135M on small word problems, 8 temperatures x 8 samples (arXiv 2510.02611).

    python -m bench.studies.temperature_scaling [--problems 30] [--minutes 15] [--plot]

Each problem is sampled once at all temperatures, and then as often again at the temperature that solved most problems, so that the
union over temperatures meets one temperature with as many samples. Texts go to results/temperature-scaling/ and are not made
twice: a run that was stopped goes on. Voting is replayed on the same samples, in rounds of two at each temperature.
"""

from __future__ import annotations

import argparse
import random
import time

import torch

from fastdecode import hf, plan
from fastdecode.cli import generate
from fastdecode.scaling import selection, texts

from .. import RESULTS

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
EACH = 8
ROUND = 2
SEED = 1
FOLDER = RESULTS / "temperature-scaling"
NAMES = ("Tom", "Anna", "Lee", "Maria", "Sam")
THINGS = ("apples", "books", "coins", "shells", "cards")
EXAMPLES = (  # one step each: of two, the model solves hardly any
    "Q: Eva has 12 pens and gives away 5. How many pens are left?\nA: 12 - 5 = 7\n\n"
    "Q: There are 4 bags with 6 stones in each. How many stones are there?\nA: 4 * 6 = 24\n\n"
    "Q: Ben has 9 stamps and gets 8 more. How many stamps are that?\nA: 9 + 8 = 17\n\n"
)


def problems(count: int) -> list[tuple[str, str]]:
    """Questions and their answers; always the same."""
    chance = random.Random(0)
    made = []
    for i in range(count):
        name, thing = chance.choice(NAMES), chance.choice(THINGS)
        a, b, c = chance.randint(11, 40), chance.randint(3, 10), chance.randint(3, 9)
        kinds = (
            (f"{name} has {a} {thing} and loses {b}. How many {thing} are left?", a - b),
            (f"{name} has {b} boxes with {c} {thing} in each. How many {thing} are there?", b * c),
            (f"{name} has {a} {thing} and finds {b} more. How many {thing} are that?", a + b),
        )
        question, answer = kinds[i % 3]
        made.append((question, str(answer)))
    return made


def written(
    loaded: generate.Loaded, number: int, question: str, name: str, temperatures, n: int, first: int
) -> list[texts.Text]:
    """From the file, or from the model."""
    file = FOLDER / f"{name}-{number:02}.jsonl"
    if not file.exists():
        made = hf.generate_temperatures(
            loaded.model, f"{EXAMPLES}Q: {question}\nA:", temperatures, n, plan(), SEED + number,
            tokenizer=loaded.tokenizer, max_new_tokens=16, stop_strings="\n", first_sample=first, progress=False,
        )  # fmt: skip
        FOLDER.mkdir(parents=True, exist_ok=True)
        texts.save(made, file)
    return texts.load(file)


def vote(answers: list[list[str | None]], early: bool) -> tuple[str | None, int]:
    """The answer, and how many samples it took."""
    for n in range(ROUND, EACH + 1, ROUND):
        seen = [own[:n] for own in answers]
        found = selection.temperature_agreement(seen)
        if found.easy and early:
            return found.answer, n * len(seen)
    return selection.majority_vote([answer for own in answers for answer in own]).answer, EACH * len(answers)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.temperature_scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--problems", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=15, help="make no more texts after so long")
    parser.add_argument("--plot", action="store_true", help="write results/temperature-scaling.png")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    asked = problems(options.problems)
    loaded = generate.load(None, None)

    answers: list[list[list[str | None]]] = []  # of each problem, at each temperature
    for number, (question, _) in enumerate(asked):
        if time.monotonic() > end:
            break
        made = written(loaded, number, question, "all", TEMPERATURES, EACH, 0)
        found = [selection.last_answer(text.text) for text in made]
        answers.append([found[i : i + EACH] for i in range(0, len(found), EACH)])
    asked = asked[: len(answers)]
    right = [answer for _, answer in asked]
    solved = [[truth in own[i] for own, truth in zip(answers, right)] for i in range(len(TEMPERATURES))]
    best = max(
        range(len(TEMPERATURES)), key=lambda i: (sum(solved[i]), sum(o[i].count(t) for o, t in zip(answers, right)))
    )
    single = []
    for number, (question, truth) in enumerate(asked):
        if time.monotonic() > end:
            break
        more = EACH * (len(TEMPERATURES) - 1)
        made = written(loaded, number, question, f"only-{TEMPERATURES[best]:g}", [TEMPERATURES[best]], more, EACH)
        single.append(truth in answers[number][best] + [selection.last_answer(text.text) for text in made])

    count = len(asked)
    print(f"{count} problems, {EACH} samples at each of {len(TEMPERATURES)} temperatures\n")
    print("| temperature | right samples | solved by one of 8 | solved here alone |\n|---|---:|---:|---:|")
    for i, t in enumerate(TEMPERATURES):
        share = sum(own[i].count(truth) for own, truth in zip(answers, right)) / (EACH * count)
        alone = sum(row[i] and sum(row) == 1 for row in zip(*solved))
        print(f"| {t:g} | {share:.1%} | {sum(solved[i])} | {alone} |")
    union = [any(row) for row in zip(*solved)]
    print(f"\nUnion over temperatures, {EACH * len(TEMPERATURES)} samples: {sum(union)} of {count} solved.")
    print(f"Temperature {TEMPERATURES[best]:g} alone, {EACH * len(TEMPERATURES)} samples: {sum(single)} of {len(single)} solved"
          f" (all temperatures on those: {sum(union[: len(single)])}).")  # fmt: skip
    for early in (False, True):
        votes = [vote(own, early) for own in answers]
        good = sum(answer == truth for (answer, _), truth in zip(votes, right))
        used = sum(n for _, n in votes) / (count * EACH * len(TEMPERATURES))
        print(
            f"Voting {'with' if early else 'without'} early exit: {good} of {count} right, {used:.1%} of the samples."
        )
    if options.plot:
        _plot([sum(own) for own in solved], sum(union), sum(single) if len(single) == count else None, best, count)


def _plot(solved: list[int], union: int, single: int | None, best: int, count: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(TEMPERATURES, solved, "o-", label=f"{EACH} samples at this temperature")
    whole = EACH * len(TEMPERATURES)
    axes.axhline(union, color="C2", label=f"all temperatures, {whole} samples")
    if single is not None:
        axes.axhline(single, color="C1", linestyle="--", label=f"temperature {TEMPERATURES[best]:g}, {whole} samples")
    axes.set(xlabel="temperature", ylabel=f"problems solved, of {count}", ylim=(0, count))
    axes.legend()
    figure.savefig(RESULTS / "temperature-scaling.png", dpi=120)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
