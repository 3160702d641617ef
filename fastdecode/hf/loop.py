"""The decoding loop: `model.generate(..., custom_generate=fastdecode.hf.sample)`.

transformers prepares everything as usual (inputs, cache, processors, stopping criteria) and calls `sample`, which runs the model
exactly as transformers' own loop does and replaces what comes after the logits: the warpers run as one plan fused with the draw
(`stages.py`), on the model's own dtype, without a float32 copy, softmax, multinomial or concatenation.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from typing import Any

import torch
from transformers.generation import logits_process
from transformers.generation import utils as theirs

from ..record import Statistics
from ..rules import Variant
from . import caller, forward, stages
from .draw import OUTPUTS, Draw, Layers

MODES = (theirs.GenerationMode.GREEDY_SEARCH, theirs.GenerationMode.SAMPLE)
DEFERRED = 8  # steps between two looks at a GPU; as many forward passes, at most, are run in vain at the end


def sample(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    synced_gpus: bool | None = None,
    streamer: Any = None,
    *,
    seed: int | torch.Tensor | None = None,
    streams: int | torch.Tensor | None = None,
    top_h_variant: Variant = "hf",
    stats: Statistics = False,
    check_every: int | None = None,
    **model_kwargs: Any,
) -> Any:
    """A decoding loop for `generate(custom_generate=...)`: greedy and sampling; the same behaviour as transformers' own.

        model.generate(**inputs, do_sample=True, temperature=1.5, top_h=0.4, top_k=0, custom_generate=fd.hf.sample, seed=7)

    Write the keyword arguments below into the call of `generate`, or bind them with `sample_with`; a streamer can only be given
    to `sample_with`, as transformers does not pass it on. Rows are those of the batch times num_return_sequences. As in
    transformers, top_k=1 draws among tokens that tie for the largest logit; do_sample=False takes the first of them.

    Args:
        seed: 64-bit number, or int64 with one value per row. None draws one from torch's default generator, so
            `torch.manual_seed` controls it. The text depends on (seed, stream, logits) and nothing else; the first new token of a
            call is always step 0, so give every call its own seed.
        streams: request id for each row, int64. Default: 0, 1, 2, ...; `streams=torch.tensor([5])` draws for a single row what
            row 5 of a batch draws.
        top_h_variant: what `top_h=` means: "hf", transformers' rule, or "paper", see `fastdecode.top_h`.
        stats: True or names as in `fastdecode.sample`; the output then has `stats`. Needs return_dict_in_generate=True.
        check_every: number of steps between two tests whether all rows have ended, for which the host waits for the GPU.
            Default: 8 on a GPU, if only transformers' own processors and stopping criteria run, there is no streamer, and a
            cache that is handed out can be shortened; otherwise 1. Steps computed in vain are taken back.

    Raises:
        ValueError: a row cannot be sampled (a NaN, or every token removed), an argument does not fit, or `generate` was given an
            assistant, or a streamer, which it keeps to itself.
        TypeError: logits_processor holds a plan or a rule, which `FusedLogitsProcessor` makes a processor of.
    """
    if forward.has_own_loop(model):
        raise ValueError(
            f"fastdecode.hf.sample replaces transformers' own decoding loop; {type(model).__name__} has another one: "
            "leave custom_generate out."
        )
    caller.refuse_what_generate_keeps(
        model, "sample",
        alone="leave custom_generate out, or use fastdecode.hf.patch(model), which leaves such calls to transformers",
        streaming="custom_generate=fastdecode.hf.sample_with(streamer=streamer), or use fastdecode.hf.patch(model),",
    )  # fmt: skip
    mode = generation_config.get_generation_mode()
    if mode not in MODES:
        raise ValueError(
            f"fastdecode.hf.sample samples or decodes greedily, with one beam; got {mode.value}: leave custom_generate out."
        )
    if stats and not generation_config.return_dict_in_generate:
        raise ValueError("stats need an output that can hold them; pass return_dict_in_generate=True too.")
    if check_every is not None and (type(check_every) is not int or check_every < 1):
        raise ValueError(f"check_every must be a whole number >= 1; got {check_every!r}.")
    _warn_about_top_k(model, generation_config, logits_processor)
    synced = forward.synced(model) if synced_gpus is None else synced_gpus
    chosen = stages.read(logits_processor, top_h_variant)
    draw = Draw(chosen, generation_config, input_ids, seed, streams, stats)
    layers = Layers(generation_config, model.config.is_encoder_decoder)
    text = _Text(input_ids, stopping_criteria.max_length)
    watch = _Watch(text, stopping_criteria.max_length, streamer)
    pads = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    pad: Any = generation_config._pad_token_tensor
    pad = None if pad is None else pad.to(input_ids.device)
    unfinished = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)

    if streamer is not None:
        streamer.put(input_ids.cpu())
    run = forward.Forward(model, input_ids, generation_config, model_kwargs)
    outputs = run(text.ids)  # the prompt; its cache is known now
    if synced or (run.outlives_the_call() and not run.can_be_shortened()):
        watch.every = 1
    elif check_every is not None:
        watch.every = check_every
    elif input_ids.device.type == "cuda" and streamer is None and _all_theirs(*logits_processor, *stopping_criteria):
        watch.every = DEFERRED
    with run.decoding():
        while model._has_unfinished_sequences(watch.over, synced, device=input_ids.device):
            outputs = run(text.ids) if outputs is None else outputs
            if not watch.over:  # or other processes need this one's share of their forward pass
                drawn, status = draw(text.ids, outputs.logits[:, -1], unfinished)
                layers.keep(outputs)
                tokens = watch.usable(drawn)
                text.append(torch.where(unfinished, tokens, pad) if pads else tokens)
                before, unfinished = unfinished, unfinished & ~stopping_criteria(text.ids, draw.scores_so_far())
                watch(before, status, unfinished)
            outputs = None  # its logits may be as long as the prompt
    if streamer is not None:
        streamer.end()
    run.shorten(watch.surplus)
    text.shorten(watch.surplus)
    if not generation_config.return_dict_in_generate:
        return text.ids.clone()
    tokens = text.ids[:, text.start :].clone()
    kind = OUTPUTS[bool(stats), bool(model.config.is_encoder_decoder)]
    found = draw.found(tokens) | layers.found(tokens.shape[1], model_kwargs) | {forward.CACHE: run.cache}
    return kind(sequences=text.ids.clone(), **found)


def sample_with(**options: Any) -> Any:
    """`sample` with its options filled in, for `generate(custom_generate=sample_with(streamer=streamer, seed=7))`.

    Args:
        options: the keyword arguments of `sample`, and `streamer`. It gets the prompt first, as from `generate`, to which it
            must not be given as well.

    Raises:
        TypeError: an option is unknown.
    """
    known = [p.name for p in inspect.signature(sample).parameters.values() if p.kind is p.KEYWORD_ONLY] + ["streamer"]
    for name in options:
        if name not in known:
            raise TypeError(f"sample_with takes {', '.join(known)}; got {name!r}.")
    return functools.partial(sample, **options)


def _warn_about_top_k(model: Any, config: Any, processors: Any) -> None:
    """Python shows it once. A top_k that was asked for cannot be told from the default, where the two are equal."""
    usual = (
        model.generation_config.top_k or 50
    )  # in 5.x a default that generate() fills in, in 4.57 a value like any other
    kinds = [type(processor) for processor in processors]
    if not config.do_sample or config.top_k != usual or logits_process.TopKLogitsWarper not in kinds:
        return
    rules = [name for name in ("top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff") if _is_set(config, name)]
    rules += [kind.__name__ for kind in kinds if kind in stages.OURS]
    if rules:
        warnings.warn(
            f"top_k={usual} also runs, as transformers does that by default, and cuts what {' and '.join(rules)} would keep; "
            "pass top_k=0 to switch it off.",
            stacklevel=_caller_of_generate(),
        )


def _caller_of_generate() -> int:
    """How many calls above the warning the first line lies that is neither ours nor of the libraries between."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _root(frame.f_globals.get("__name__", "")) in (
        "fastdecode",
        "transformers",
        "torch",
    ):
        level, frame = level + 1, frame.f_back
    return level


def _root(module: str) -> str:
    return module.split(".")[0]


def _is_set(config: Any, name: str) -> bool:
    """Off is None in 5.x; 4.57 has 0 or 1 for some of them."""
    return getattr(config, name, None) not in (None, 0.0, 1.0)


def _all_theirs(*objects: Any) -> bool:
    return all(_root(type(thing).__module__) in ("transformers", "fastdecode") for thing in objects)


class _Text:
    """The token ids, prompt first, in one tensor that is written from left to right.

    `ids` is the part written so far. Processors and stopping criteria get it, so it is what transformers hands out: int64 and
    contiguous, which for several rows takes a copy at each step.
    """

    def __init__(self, prompt: torch.Tensor, max_length: int | None):
        rows, self.length = prompt.shape
        room = 256 if max_length is None else min(256, max(0, max_length - self.length))
        self.start = self.length
        self.memory = torch.cat([prompt.long(), prompt.new_empty(rows, room, dtype=torch.int64)], dim=1)
        self.ids = self._ids()

    def append(self, tokens: torch.Tensor) -> None:
        if self.length == self.memory.shape[1]:
            self.memory = torch.cat([self.memory, torch.empty_like(self.memory[:, : max(256, self.length)])], dim=1)
        self.memory[:, self.length] = tokens
        self.length += 1
        self.ids = self._ids()

    def shorten(self, tokens: int) -> None:
        self.length -= tokens
        self.ids = self._ids()

    def _ids(self) -> torch.Tensor:
        return self.memory[:, : self.length].contiguous()


class _Watch:
    """Knows when all rows have ended, and hands the tokens to the streamer.

    Both need the host to wait for a GPU, so there they happen every `every` steps, with one transfer: the number of steps after
    which a row was still unfinished tells how many of the steps since then were in vain.
    """

    def __init__(self, text: _Text, max_length: int | None, streamer: Any):
        self.text, self.max_length, self.streamer = text, max_length, streamer
        self.every = 1
        self.over = False
        self.steps = self.surplus = self.streamed = 0
        rows, device = text.ids.shape[0], text.ids.device
        self.at_hand = device.type == "cpu"
        self.found = torch.zeros(
            1 + rows, dtype=torch.int64, device=device
        )  # unfinished steps; flagged steps of each row

    def usable(self, tokens: torch.Tensor) -> torch.Tensor:
        """-1 is not an index, and the model may see it before the host tests for it."""
        return tokens if self.at_hand and self.every == 1 else tokens.clamp(min=0)

    def __call__(self, before: torch.Tensor, status: torch.Tensor | None, unfinished: torch.Tensor) -> None:
        """A step is done: the rows that were unfinished before it, how their draws went, the rows that are now."""
        self.steps += 1
        if self.at_hand and self.every == 1:  # few operations: a small one costs what drawing a token does
            self.over = not unfinished.any()
            if status is not None and status.any():
                self._raise_if_flagged(((status != 0) & before).tolist())
            return self._stream()
        self.found[0] += unfinished.any()
        if status is not None:
            self.found[1:] += (status != 0).to(before.device) & before
        if self.steps % self.every == 0 or self.text.length == self.max_length:
            open_steps, *flagged = self.found.tolist()  # the synchronisation
            self._raise_if_flagged(flagged)
            self.over = open_steps < self.steps
            self.surplus = self.steps - open_steps - 1 if self.over else 0
            self._stream()

    def _stream(self) -> None:
        if self.streamer is not None:
            start, end = self.text.start + self.streamed, self.text.start + self.steps - self.surplus
            for tokens in self.text.ids[:, start:end].cpu().unbind(1):
                self.streamer.put(tokens)
            self.streamed = self.steps

    @staticmethod
    def _raise_if_flagged(flagged: list[Any]) -> None:
        if any(flagged):
            rows = ", ".join(str(row) for row, times in enumerate(flagged) if times)
            raise ValueError(
                "after the logits processors, every row of logits must hold a finite logit and no NaN; rows that do not: "
                f"{rows}."
            )
