"""Many temperatures and samples of one prompt: one prefill, one batch, and the voting of arXiv 2510.02611 on top.

Every sample has a stream of its own, made of its prompt, its temperature's place and its number. So a text depends on the seed
and those three, not on how many others are asked for, and more samples of the same kind can follow in another call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation import logits_process as theirs

from .. import ops, rules, selection
from ..plan import Plan, plan
from ..texts import Text
from . import forward
from .warpers import fresh_seed

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
    plan: Plan | None = None,
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

    The rows of one prompt share its prefill: its part of the KV-cache is computed once and then repeated. The logits are the
    model's own; processors of its generation config do not run.

    Args:
        model: a transformers decoder with a KV-cache.
        inputs: a prompt (then `tokenizer` is needed), token ids [n] or [B, n], or what a tokenizer returns; several prompts must
            be padded on the left.
        temperatures: one or more, each >= 0; greedy samples at 0 are all the same.
        num_samples: for each prompt and temperature.
        plan: the rules after the temperature, with one set of values.
        seed: 64 bits; None draws one from torch's default generator.
        tokenizer: makes the texts; without it they are empty.
        max_new_tokens: at most so many tokens.
        eos_token_id: default: the model's generation config's; an empty list: none.
        stop_strings: a text ends where one of them is complete.
        first_sample: the number of the first sample; go on here after an earlier call.
        progress: a bar of texts that are done (tqdm). None: on a terminal.

    Returns:
        A `fastdecode.texts.Text` for each, in the order of prompts, temperatures, samples. `fastdecode.texts.save` writes them.

    Raises:
        ValueError: an argument is not as described, or a row of logits cannot be sampled.
    """
    ids, mask = _encoded(model, inputs, tokenizer)
    plan = _NONE if plan is None else plan
    kinds = [(b, i, s) for b in range(len(ids)) for i in range(len(temperatures)) for s in range(num_samples)]
    _check(plan, temperatures, num_samples, first_sample, max_new_tokens, len(ids))
    stops = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
    if stops and (tokenizer is None or "" in stops):
        raise ValueError("stop_strings need a tokenizer that reads the tokens, and must not be empty.")
    ends = _ends(model, eos_token_id)
    seed = fresh_seed() if seed is None else seed
    rows = [_Row(b, float(temperatures[i]), first_sample + s, stream_of(b, i, first_sample + s)) for b, i, s in kinds]
    decoder = _Decoder(model, ids, mask)
    logits = decoder.prefill().repeat_interleave(len(kinds) // len(ids), 0)
    decoder.repeat(len(kinds) // len(ids))
    alive, chain, streams = rows, plan, torch.empty(0, device="cpu")
    with _bar(len(rows), progress) as bar:
        for step in range(max_new_tokens):
            if step == 0 or len(alive) != len(streams):
                chain = plan.at(torch.tensor([row.temperature for row in alive], dtype=torch.float32, device="cpu"))
                streams = torch.tensor([row.stream for row in alive], device="cpu")
            drawn = ops.sample(logits, chain, seed=seed, step=step, streams=streams, stats=("raw_logprobs", "entropy"))
            _add(alive, drawn, step)
            for row in alive:
                row.look(ends, stops, tokenizer)
            left = [i for i, row in enumerate(alive) if row.end == "length"]
            bar.update(len(alive) - len(left))
            if not left or step + 1 == max_new_tokens:
                break
            tokens = drawn.tokens[left]
            if len(left) < len(alive):
                decoder.keep(torch.tensor(left))
                alive = [alive[i] for i in left]
            logits = decoder.step(tokens)
        bar.update(bar.total - bar.n)
    return [row.text_with(tokenizer, ends, stops) for row in rows]


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

    After each round `fastdecode.selection.temperature_agreement` looks at all samples so far. If they agree, its answer is the
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
    seed = fresh_seed() if seed is None else seed
    texts: list[list[Text]] = [[] for _ in temperatures]
    rounds = each = 0
    while True:
        n = min(per_round, budget // len(temperatures) - each)
        made = generate_temperatures(model, inputs, temperatures, n, seed=seed, first_sample=each, **options)
        if made[-1].prompt:
            raise ValueError(f"voting takes one prompt; got {made[-1].prompt + 1}.")
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
        return ops.truncate(scores, plan(rules.temperature(each_row)))


# ---- the parts -----------------------------------------------------------------------------------------------------


@dataclass
class _Row:
    """A text while it is written."""

    prompt: int
    temperature: float
    sample: int
    stream: int
    end: str = "length"

    def __post_init__(self) -> None:
        self.tokens: list[int] = []
        self.logprob = self.raw_logprob = self.entropy = 0.0

    def look(self, ends: set[int], stops: list[str], tokenizer: Any) -> None:
        """Has the last token ended it?"""
        if self.tokens[-1] in ends:
            self.end = "eos"
        elif stops:
            # A character takes four tokens at most (its bytes), and what came before may have begun in the middle of one.
            tail = tokenizer.decode(self.tokens[-4 * max(map(len, stops)) - 8 :], skip_special_tokens=True)
            if any(stop in tail for stop in stops):
                self.end = "stop"

    def text_with(self, tokenizer: Any, ends: set[int], stops: list[str]) -> Text:
        text = (
            ""
            if tokenizer is None
            else tokenizer.decode([t for t in self.tokens if t not in ends], skip_special_tokens=True)
        )
        if self.end == "stop":
            text = text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
        n = len(self.tokens)
        return Text(
            self.prompt, self.temperature, self.sample, self.stream, text, self.tokens, self.logprob, self.raw_logprob,
            self.entropy / n, self.end,
        )  # fmt: skip


def _add(rows: list[_Row], drawn: Any, step: int) -> None:
    """One transfer a step: the host must know who has ended."""
    if bool(drawn.status.any()):
        bad = [row for row, status in zip(rows, drawn.status.tolist()) if status]
        raise ValueError(
            f"every row of logits must hold a finite logit and no NaN; step {step} of prompt {bad[0].prompt} at temperature {bad[0].temperature:g} does not."
        )
    columns = (drawn.tokens, drawn.logprobs, drawn.raw_logprobs, drawn.entropy)
    for row, token, logprob, raw, entropy in zip(rows, *(column.tolist() for column in columns)):
        row.tokens.append(token)
        row.logprob += logprob
        row.raw_logprob += raw
        row.entropy += entropy


class _Decoder:
    """The model, its cache and the mask: one prompt's worth at first, then one for each row that is alive."""

    def __init__(self, model: Any, ids: torch.Tensor, mask: torch.Tensor):
        self.model, self.ids, self.mask = model, ids, mask
        takes = inspect.signature(model.forward).parameters
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self.positions = "position_ids" in takes
        # A model of one's own may have the old name still; a wrapper may show none.
        self.cache_name = "past_key_values" if "past_key_values" in takes else forward.CACHE
        self.cache: Any = None

    def prefill(self) -> torch.Tensor:
        """Logits of the first new token, [B, V]."""
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        return self._run(self.ids, positions, **self.last_only)

    def repeat(self, times: int) -> None:
        if not hasattr(self.cache, "batch_repeat_interleave"):
            raise ValueError(
                f"generate_temperatures needs a model with a KV-cache that can be repeated; got {type(self.cache).__name__}."
            )
        self.cache.batch_repeat_interleave(times)
        self.mask = self.mask.repeat_interleave(times, 0)

    def keep(self, rows: torch.Tensor) -> None:
        rows = rows.to(self.mask.device)
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        return self._run(tokens.to(self.ids.device)[:, None], self.mask.sum(1, keepdim=True) - 1)

    def _run(self, ids: torch.Tensor, positions: torch.Tensor, **options: Any) -> torch.Tensor:
        if self.positions:
            options["position_ids"] = positions
        options[self.cache_name] = self.cache
        out = self.model(input_ids=ids, attention_mask=self.mask, use_cache=True, **options)
        self.cache = getattr(out, self.cache_name)
        return out.logits[:, -1]


def _encoded(model: Any, inputs: Any, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, [B, n], on the model's device."""
    if model.config.is_encoder_decoder:
        raise ValueError(f"generate_temperatures takes a decoder; got {type(model).__name__}.")
    if isinstance(inputs, str):
        if tokenizer is None:
            raise ValueError("a prompt in words needs a tokenizer; pass tokenizer=, or token ids.")
        inputs = tokenizer(inputs, return_tensors="pt")
    given = inputs if isinstance(inputs, Mapping) else {"input_ids": inputs}
    ids = given.get("input_ids")
    if not isinstance(ids, torch.Tensor) or ids.ndim not in (1, 2) or not ids.numel() or ids.is_floating_point():
        raise ValueError("inputs must be a prompt, token ids [n] or [B, n] with n >= 1, or what a tokenizer returns.")
    ids = ids.unsqueeze(0) if ids.ndim == 1 else ids
    mask = given.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask.view(ids.shape)
    if not bool(mask[:, -1].all()):
        raise ValueError("prompts must be padded on the left; set tokenizer.padding_side = 'left'.")
    return ids.to(model.device), mask.to(model.device)


def _check_temperatures(temperatures: Sequence[float]) -> None:
    if not len(temperatures):
        raise ValueError("temperatures must hold at least one; got none.")
    for t in temperatures:
        rules.temperature(t)


def _check(
    plan: Plan, temperatures: Sequence[float], num_samples: int, first_sample: int, max_new_tokens: int, prompts: int
) -> None:
    _check_temperatures(temperatures)
    if plan.rows is not None:
        raise ValueError("the plan of generate_temperatures must hold numbers; its rows are not known to the caller.")
    if num_samples < 1 or max_new_tokens < 1 or first_sample < 0:
        raise ValueError(
            f"num_samples and max_new_tokens must be whole numbers >= 1, first_sample >= 0; got {num_samples!r}, {max_new_tokens!r} and {first_sample!r}."
        )
    if prompts > _PROMPTS or len(temperatures) > _TEMPERATURES or first_sample + num_samples > _SAMPLES:
        raise ValueError(
            f"there are streams for {_PROMPTS} prompts, {_TEMPERATURES} temperatures and {_SAMPLES} samples of each; use another seed for more."
        )


def _ends(model: Any, eos_token_id: int | Sequence[int] | None) -> set[int]:
    given = model.generation_config.eos_token_id if eos_token_id is None else eos_token_id
    return set() if given is None else {given} if isinstance(given, int) else set(given)


def _bar(total: int, progress: bool | None) -> Any:
    from tqdm.auto import tqdm  # transformers needs it too

    return tqdm(total=total, desc="texts", disable=None if progress is None else not progress)
