"""Many temperatures and samples of one prompt: one prefill, one batch, and the voting of arXiv 2510.02611 on top.

Every sample has a stream of its own, made of its prompt, its temperature's place and its number. So a text depends on the seed
and those three, not on how many others are asked for, and more samples of the same kind can follow in another call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation import logits_process as theirs

from .. import ops, rules
from ..plan import Plan, PlanLike, as_plan, plan
from ..scaling import selection
from ..scaling.texts import Text
from . import forward, prompts
from .branches import Branches
from .warpers import fresh_seed, single
from .written import Ends, Row, add

_NONE = plan()
_PROMPTS, _TEMPERATURES, _SAMPLES = 2**12, 2**8, 2**20  # a stream has 40 bits


def stream_of(prompt: int, place: int, sample: int) -> int:
    """The stream of a sample: `place` is that of its temperature in the list."""
    return (prompt * _TEMPERATURES + place) * _SAMPLES + sample


@torch.no_grad()
def generate_temperatures(
    model: Any,
    inputs: Any,
    temperatures: Sequence[float],
    num_samples: int = 1,
    plan: PlanLike | None = None,
    seed: int | None = None,
    *,
    tokenizer: Any = None,
    max_new_tokens: int = 256,
    eos_token_id: int | Sequence[int] | None = None,
    stop_strings: str | Sequence[str] = (),
    first_sample: int = 0,
    progress: bool | None = None,
) -> list[Text]:
    """Write num_samples texts at each temperature, all in one batch behind one prefill; rows that have ended leave the batch.

    The rows of one prompt share its prefill: its part of the cache is computed once and then repeated, states of linear attention
    included. Where that cannot be (encoders, models that keep their states elsewhere than in a `DynamicCache`, and prompts with
    images or other inputs than text) each row reads the prompt, and rows that have ended stay in the batch; the texts are the
    same. The logits are the model's own; processors of its generation config do not run.

    Args:
        model: a transformers model that decodes with transformers' own loop.
        inputs: a prompt (then `tokenizer` is needed), token ids [n] or [B, n], or what a tokenizer or a processor returns, all of
            which `generate` gets: pixel_values and so on. Several prompts for a decoder must be padded on the left.
        temperatures: one or more, each >= 0; greedy samples at 0 are all the same.
        num_samples: for each prompt and temperature.
        plan: the rules after the temperature, with one set of values.
        seed: 64 bits; None draws one from torch's default generator.
        tokenizer: makes the texts; without it they are empty.
        max_new_tokens: the largest number of tokens.
        eos_token_id: default: the model's generation config's; an empty list: none.
        stop_strings: a text ends where one of them is complete. They may be special tokens, or hold some.
        first_sample: the number of the first sample; go on here after an earlier call.
        progress: a bar of texts that are done (tqdm). None: on a terminal.

    Returns:
        A `fastdecode.scaling.texts.Text` for each, in the order of prompts, temperatures, samples. `fastdecode.scaling.texts.save` writes them.

    Raises:
        ValueError: an argument is not as described, the model does not take an input, or a row of logits cannot be sampled.
    """
    chain = _NONE if plan is None else as_plan(plan)
    _check(chain, temperatures, num_samples, first_sample, max_new_tokens)
    stops = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
    if stops and (tokenizer is None or "" in stops):
        raise ValueError("stop_strings need a tokenizer that reads the tokens, and must not be empty.")
    given = prompts.arguments(model, inputs, tokenizer)
    samples = range(first_sample, first_sample + num_samples)
    ends = Ends(_end_tokens(model, eos_token_id), stops, tokenizer)
    writing = _Writing(chain, list(map(float, temperatures)), samples, seed, ends, max_new_tokens, progress)
    # generate() prepares all that the model needs: inputs of every kind, positions, the cache.
    model.generate(
        **given, custom_generate=writing, do_sample=True, num_beams=1, num_return_sequences=1, use_cache=True,
        cache_implementation=None, stop_strings=None, return_dict_in_generate=False, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    if not writing.rows:
        raise ValueError(
            f"generate_temperatures needs a model that decodes with transformers' own loop; got {type(model).__name__}, "
            "whose generate() ignores custom_generate."
        )
    return [row.text_with(ends) for row in writing.rows]


class _Writing:
    """The loop that `generate` is given."""

    def __init__(
        self,
        plan: Plan,
        temperatures: list[float],
        samples: range,
        seed: int | None,
        ends: Ends,
        most: int,
        progress: Any,
    ):
        self.plan, self.temperatures, self.samples, self.ends = plan, temperatures, samples, ends
        self.seed = fresh_seed() if seed is None else seed
        self.most, self.progress = most, progress
        self.rows: list[Row] = []

    def __call__(
        self, model: Any, input_ids: torch.Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any,
        **model_kwargs: Any,
    ) -> None:  # fmt: skip
        if forward.has_own_loop(model):
            raise ValueError(
                "generate_temperatures needs a model that decodes with transformers' own loop; "
                f"{type(model).__name__} has another one."
            )
        self.rows = self._rows(len(input_ids))
        branches = Branches(model, input_ids, generation_config, model_kwargs, len(self.rows) // len(input_ids))
        with _bar(len(self.rows), self.progress) as bar:
            self._write(branches, bar)

    def _rows(self, prompts: int) -> list[Row]:
        if prompts > _PROMPTS:
            raise ValueError(f"there are streams for {_PROMPTS} prompts; got {prompts}: use another seed for more.")
        return [
            Row(b, t, sample, stream_of(b, i, sample))
            for b in range(prompts)
            for i, t in enumerate(self.temperatures)
            for sample in self.samples
        ]

    def _write(self, branches: Branches, bar: Any) -> None:
        logits, batch = branches.prefill(), self.rows
        chain, streams = self.plan, torch.empty(0, device="cpu")
        with branches.run.decoding():
            for step in range(self.most):
                if len(batch) != len(streams):
                    chain = self.plan.at(
                        torch.tensor([row.temperature for row in batch], dtype=torch.float32, device="cpu")
                    )
                    streams = torch.tensor([row.stream for row in batch], device="cpu")
                drawn = ops.sample(
                    single(logits), chain, seed=self.seed, step=step, streams=streams, stats=("raw_logprobs", "entropy")
                )
                before = sum(row.open for row in batch)
                add(batch, drawn, step)
                for row in batch:
                    row.look(self.ends)
                left = [i for i, row in enumerate(batch) if row.open]
                bar.update(before - len(left))
                if not left or step + 1 == self.most:
                    break
                tokens = drawn.tokens.clamp(min=0)  # a row that has ended may be -1
                if len(left) < len(batch) and branches.can_select:
                    branches.keep(torch.tensor(left))
                    tokens, batch = tokens[left], [batch[i] for i in left]
                logits = branches.step(tokens)
            bar.update(bar.total - bar.n)


@dataclass(frozen=True)
class Voted:
    """What `vote_temperatures` found."""

    answer: Any  # None: no text had one
    ended_by: str  # "agreement" (the early exit) or "budget"
    samples: int  # written
    budget: int
    rounds: int
    agreement: selection.Agreement  # of all samples
    texts: list[Text]

    @property
    def saved(self) -> float:
        """The share of the budget that was not needed."""
        return 1 - self.samples / self.budget


def vote_temperatures(
    model: Any,
    inputs: Any,
    temperatures: Sequence[float],
    budget: int,
    per_round: int = 4,
    *,
    intra: float = 0.8,
    cross: float = 1.0,
    extract: Callable[[str], Any] = selection.last_answer,
    seed: int | None = None,
    **options: Any,
) -> Voted:
    """Multi-temperature voting with early exit (arXiv 2510.02611): rounds of samples at every temperature until all agree.

    After each round `fastdecode.scaling.selection.temperature_agreement` looks at all samples so far. If they agree, its answer is the
    answer; otherwise, when the budget cannot pay for one more sample at each temperature, the majority of all samples is. (The
    paper does not say how the rest of the budget is spent, nor how ties go: here evenly, and to the answer that came first.)
    Each round reads the prompt again.

    Args:
        model, inputs, temperatures, seed: as in `generate_temperatures`; one prompt.
        budget: samples at most, over all temperatures.
        per_round: samples of each temperature in a round.
        intra, cross: the majority's share within each temperature, and the share of temperatures that have the same answer.
        extract: from a text to its answer; None if it has none. Default: the last boxed expression, or the last number.
        options: further arguments of `generate_temperatures`; `tokenizer` is needed.
    """
    if options.get("tokenizer") is None:
        raise ValueError("voting needs a tokenizer: answers are read from texts.")
    if per_round < 1 or budget < len(temperatures):
        raise ValueError(
            f"voting needs per_round >= 1 and a budget for a sample at each temperature ({len(temperatures)}); "
            f"got per_round={per_round!r}, budget={budget!r}."
        )
    count = prompts.count(inputs)
    if count > 1:
        raise ValueError(f"voting takes one prompt; got {count}.")
    seed = fresh_seed() if seed is None else seed
    texts: list[list[Text]] = [[] for _ in temperatures]
    rounds = each = 0
    while True:
        n = min(per_round, budget // len(temperatures) - each)
        made = generate_temperatures(model, inputs, temperatures, n, seed=seed, first_sample=each, **options)
        for i, own in enumerate(texts):
            own += made[i * n : (i + 1) * n]
        rounds, each = rounds + 1, each + n
        answers = [[extract(text.text) for text in own] for own in texts]
        found = selection.temperature_agreement(answers, intra, cross)
        if found.easy or (each + 1) * len(temperatures) > budget:
            break
    answer = found.answer if found.easy else selection.majority_vote([a for own in answers for a in own]).answer
    ended_by = "agreement" if found.easy else "budget"
    return Voted(
        answer, ended_by, each * len(temperatures), budget, rounds, found, [text for own in texts for text in own]
    )


class MultiTemperatureLogitsProcessor(theirs.LogitsProcessor):
    """A temperature for each of the texts of a prompt: `generate(num_return_sequences=len(temperatures))`, or a multiple.

    Text j of a prompt has temperature j modulo their number. Leave the temperature of the call itself at 1.

    Args:
        temperatures: one or more; 0 leaves only the largest logit.
    """

    def __init__(self, temperatures: Sequence[float]):
        _check_temperatures(temperatures)
        self.temperatures = [float(t) for t in temperatures]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        repeats, rest = divmod(len(scores), len(self.temperatures))
        if rest:
            raise ValueError(
                f"num_return_sequences must be a multiple of the number of temperatures ({len(self.temperatures)}); got a batch of {len(scores)} rows."
            )
        each_row = torch.tensor(self.temperatures * repeats, dtype=torch.float32, device=scores.device)
        return ops.truncate(single(scores), plan(rules.temperature(each_row))).to(scores.dtype)


# ---- the parts -----------------------------------------------------------------------------------------------------


def _check_temperatures(temperatures: Sequence[float]) -> None:
    if not len(temperatures):
        raise ValueError("temperatures must hold at least one; got none.")
    for t in temperatures:
        rules.temperature(t)


def _check(plan: Plan, temperatures: Sequence[float], num_samples: int, first_sample: int, max_new_tokens: int) -> None:
    _check_temperatures(temperatures)
    if plan.rows is not None:
        raise ValueError("the plan of generate_temperatures must hold numbers; its rows are not known to the caller.")
    if num_samples < 1 or max_new_tokens < 1 or first_sample < 0:
        raise ValueError(
            f"num_samples and max_new_tokens must be whole numbers >= 1, first_sample >= 0; got {num_samples!r}, {max_new_tokens!r} and {first_sample!r}."
        )
    if len(temperatures) > _TEMPERATURES or first_sample + num_samples > _SAMPLES:
        raise ValueError(
            f"there are streams for {_TEMPERATURES} temperatures and {_SAMPLES} samples of each; use another seed for more."
        )


def _end_tokens(model: Any, eos_token_id: int | Sequence[int] | None) -> set[int]:
    given = model.generation_config.eos_token_id if eos_token_id is None else eos_token_id
    return set() if given is None else {given} if isinstance(given, int) else set(given)


def _bar(total: int, progress: bool | None) -> Any:
    from tqdm.auto import tqdm  # transformers needs it too

    return tqdm(total=total, desc="texts", disable=None if progress is None else not progress)
