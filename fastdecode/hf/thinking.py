"""Soft thinking: `model.generate(..., custom_generate=fastdecode.hf.soft_thinking, end_of_thinking=id)`.

While a row thinks, the model is fed a mixture of embeddings instead of the one of a drawn token (arXiv 2505.15778, 2508.03440);
the token of the largest weight is what the text shows. A row stops thinking when that token is the end of thinking, when it has
been certain for long (Cold Stop), or when its budget is spent; then it is sampled as `generate` was told to. Rows of a batch go
through this each at its own pace: those that do not think are fed their token's own embedding, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from transformers.generation import utils as theirs

from .. import rules
from ..embedding import soft_embedding
from ..plan import PlanLike, as_plan, plan
from ..record import Noise
from ..soft import SoftTokens, soft_tokens
from . import caller, forward, stages
from .draw import Draw
from .loop import MODES, _Text, _Watch
from .warpers import fresh_seed, single

THINKING = plan(rules.temperature(0.6), rules.top_k(30), rules.top_p(0.95))


@dataclass
class SoftThinkingOutput(theirs.GenerateDecoderOnlyOutput):
    """transformers' output, and `soft`: a `fastdecode.SoftTokens` whose tensors have a dimension more, [B, generated tokens, ...].

    `soft.soft` says which tokens were mixtures. The others have one id of weight 1, and log_pi and noise 0; what was drawn for
    the answer, or after a row had ended, has NaN for its entropy and logprobs.
    """

    soft: SoftTokens | None = None


def soft_thinking(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    synced_gpus: bool | None = None,
    streamer: Any = None,
    *,
    end_of_thinking: int | None = None,
    thinking_plan: PlanLike = THINKING,
    answer_plan: PlanLike | None = None,
    noise: Noise = "gumbel",
    tau: float | torch.Tensor = 0.5,
    top_m: int | None = 5,
    gamma: float = 4.0,
    k: int = 3,
    scale: float = 1.0,
    cold_stop: float = 0.01,
    patience: int = 256,
    max_thinking: int | None = None,
    thinks: torch.Tensor | None = None,
    seed: int | torch.Tensor | None = None,
    streams: int | torch.Tensor | None = None,
    **model_kwargs: Any,
) -> Any:
    """A decoding loop for `generate(custom_generate=...)` in which a model thinks in soft tokens, and answers in ordinary ones.

    Write the keyword arguments below into the call of `generate`. Its own options (temperature and so on, processors) rule the
    answer alone; the thinking is ruled by what is here. Models of less than some 14 billion parameters do not gain from it.

    Args:
        end_of_thinking: the id of the token that ends the thinking: the last one of "</think>".
        thinking_plan: the plan of the mixtures. Default: temperature .6, top-k 30, top-p .95.
        answer_plan: the plan of the answer, in place of the options of `generate`.
        noise, tau, top_m, gamma, k, scale: as in `fastdecode.soft_tokens`.
        cold_stop: entropy threshold in nats; 0 switches it off.
        patience: consecutive steps below the threshold before thinking ends: end_of_thinking then replaces the next token.
        max_thinking: tokens of thinking before end_of_thinking replaces the next one. None: no limit.
        thinks: bool [B]: which rows think; the others answer at once. Default: all.
        seed, streams: as in `fastdecode.hf.sample`. The first new token is step 0, in either phase.

    Raises:
        ValueError: a row cannot be sampled (a NaN, or every token removed), an argument does not fit, or `generate` was given an
            assistant, or a streamer, which it keeps to itself: bind it with functools.partial.
    """
    _check(model, generation_config, end_of_thinking, cold_stop, patience, max_thinking)
    rows, device = len(input_ids), input_ids.device
    seed = fresh_seed() if seed is None else seed
    given = None if answer_plan is None else as_plan(answer_plan)
    chosen = stages.read(logits_processor) if given is None else stages.Stages([], given, None)
    answer = Draw(chosen, generation_config, input_ids, seed, streams, False)
    if given is not None:  # regardless of do_sample
        answer.greedy, answer.plan = False, given
    mixing = {"noise": noise, "tau": tau, "top_m": top_m, "gamma": gamma, "k": k, "scale": scale,
              "seed": seed, "streams": streams}  # fmt: skip
    phase = _Phase(rows, device, end_of_thinking, cold_stop, patience, max_thinking, thinks)
    text = _Text(input_ids, stopping_criteria.max_length)
    watch = _Watch(text, stopping_criteria.max_length, streamer)
    pad: Any = generation_config._pad_token_tensor
    pad = torch.zeros((), dtype=torch.int64, device=device) if pad is None else pad.to(device)
    unfinished = torch.ones(rows, dtype=torch.bool, device=device)
    synced = forward.synced(model) if synced_gpus is None else synced_gpus
    record: list[SoftTokens] = []

    if streamer is not None:
        streamer.put(input_ids.cpu())
    run = forward.Forward(model, input_ids, generation_config, model_kwargs)
    outputs = run(text.ids)
    with run.decoding():
        while model._has_unfinished_sequences(watch.over, synced, device=device):
            embedded = _embedded(model, record[-1]) if outputs is None and phase.was_soft else None
            outputs = run(text.ids, embedded) if outputs is None else outputs
            if not watch.over:
                logits = outputs.logits[:, -1]
                thinking = phase.thinking & unfinished
                status = torch.zeros(rows, dtype=torch.uint8, device=device)
                tokens, soft = pad.expand(rows), None
                if bool((~thinking & unfinished).any()):
                    answer.steps = watch.steps
                    drawn, flagged = answer(text.ids, logits, unfinished)
                    tokens = torch.where(thinking | ~unfinished, pad, drawn)
                    status = status if flagged is None else torch.where(thinking, 0, flagged.to(device))
                if bool(thinking.any()):
                    soft = soft_tokens(single(logits), thinking_plan, step=watch.steps, **mixing)  # type: ignore[arg-type]
                    status = torch.where(thinking, soft.status.to(device), status)
                    tokens = torch.where(thinking, soft.tokens.to(device), tokens)
                    tokens = phase.advance(thinking, tokens, soft.entropy.to(device))
                mixed = thinking & phase.thinking
                record.append(_recorded(soft, tokens, thinking, mixed))
                phase.was_soft = bool(mixed.any())
                text.append(watch.usable(tokens))
                before, unfinished = unfinished, unfinished & ~stopping_criteria(text.ids, None)
                watch(before, status, unfinished)
            outputs = None
    if streamer is not None:
        streamer.end()
    if not generation_config.return_dict_in_generate:
        return text.ids.clone()
    found: dict[str, Any] = {"sequences": text.ids.clone(), forward.CACHE: run.cache}
    return SoftThinkingOutput(**found, soft=_stacked(record))


class _Phase:
    """Which rows think, and for how long they have been certain."""

    was_soft = False  # is any of the tokens that the model sees next a mixture?

    def __init__(
        self, rows: int, device: Any, end: int | None, cold_stop: float, patience: int, most: int | None, thinks: Any
    ):
        if thinks is not None and (thinks.dtype != torch.bool or thinks.shape != (rows,)):
            raise ValueError(
                f"thinks must be a bool tensor of shape [{rows}]; got {thinks.dtype} of shape {list(thinks.shape)}."
            )
        self.thinking = torch.ones(rows, dtype=torch.bool, device=device) if thinks is None else thinks.to(device)
        self.certain = torch.zeros(rows, dtype=torch.int64, device=device)  # consecutive steps below the threshold
        self.steps, self.end, self.cold_stop, self.patience, self.most = 0, end, cold_stop, patience, most

    def advance(self, thinking: torch.Tensor, tokens: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        """The tokens of this step, after Cold Stop. Rows think from the start or never, so all have thought as long."""
        self.certain = torch.where(entropy < self.cold_stop, self.certain + 1, 0)
        forced = thinking & (self.certain >= self.patience)
        if self.most is not None and self.steps >= self.most:
            forced = thinking
        self.steps += 1
        tokens = torch.where(forced, self.end, tokens)  # type: ignore[arg-type]
        self.thinking = self.thinking & ~(thinking & (tokens == self.end))
        return tokens


def _recorded(soft: SoftTokens | None, tokens: torch.Tensor, thinking: torch.Tensor, mixed: torch.Tensor) -> SoftTokens:
    """What this step fed to the model: mixtures in rows that are `mixed`, and single tokens."""
    rows, device = len(tokens), tokens.device
    if soft is None:
        nan = torch.full((rows,), math.nan, dtype=torch.float32, device=device)
        alone = torch.full((rows, 1), -1, device=device)
        zeros = torch.zeros(rows, 1, dtype=torch.float32, device=device)
        soft = SoftTokens(
            alone, zeros, tokens, nan, torch.zeros(rows, dtype=torch.int64, device=device),
            torch.zeros(rows, dtype=torch.uint8, device=device), mixed, zeros, zeros, nan, ("none", 1.0),
        )  # fmt: skip
    first = torch.arange(soft.ids.shape[1], device=device) == 0
    one = mixed[:, None]
    return replace(
        soft,
        ids=torch.where(one, soft.ids, torch.where(first, tokens[:, None], -1)),
        weights=torch.where(one, soft.weights, first.to(soft.weights.dtype)),
        tokens=tokens,
        soft=mixed,
        entropy=torch.where(thinking, soft.entropy, math.nan),
        log_pi=torch.where(one, soft.log_pi, 0.0),
        noise=torch.where(one, soft.noise, 0.0),
        logprobs=torch.where(mixed, soft.logprobs, math.nan),
        kept=torch.where(thinking, soft.kept, 0),
        status=torch.where(thinking, soft.status, 0),
    )


def _embedded(model: Any, soft: SoftTokens) -> torch.Tensor:
    """[B, 1, D]. The model's own look-up, as some scale what they look up, and then the weighted sum."""
    looked_up = model.get_input_embeddings()(soft.ids.clamp(min=0))
    places = torch.arange(soft.ids.numel(), device=soft.ids.device).view(soft.ids.shape)
    mixture = replace(soft, ids=torch.where(soft.ids < 0, -1, places))
    return soft_embedding(mixture, looked_up.flatten(0, 1))[:, None]


def _stacked(record: list[SoftTokens]) -> SoftTokens:
    """Steps along dimension 1; the mixtures as wide as the widest."""
    width = max(step.ids.shape[1] for step in record)
    values: dict[str, Any] = {}
    for field in fields(SoftTokens):
        parts = [getattr(step, field.name) for step in record]
        if field.name == "how":
            values["how"] = next((step.how for step in record if bool(step.soft.any())), record[0].how)
            continue
        filler = -1 if field.name == "ids" else 0
        parts = [
            torch.nn.functional.pad(part, (0, width - part.shape[1]), value=filler) if part.ndim == 2 else part
            for part in parts
        ]
        values[field.name] = torch.stack(parts, dim=1)
    return SoftTokens(**values)


def _check(model: Any, config: Any, end: Any, cold_stop: float, patience: int, most: int | None) -> None:
    if forward.has_own_loop(model) or model.config.is_encoder_decoder:
        raise ValueError(
            "fastdecode.hf.soft_thinking needs a decoder that generates with transformers' own loop; "
            f"got {type(model).__name__}: leave custom_generate out."
        )
    caller.refuse_what_generate_keeps(
        model, "soft_thinking", alone="leave it out",
        streaming="custom_generate=functools.partial(fastdecode.hf.soft_thinking, streamer=streamer)",
    )  # fmt: skip
    mode = config.get_generation_mode()
    if mode not in MODES:
        raise ValueError(
            f"fastdecode.hf.soft_thinking decodes with one beam; got {mode.value}: leave custom_generate out."
        )
    if not config.use_cache:
        raise ValueError(
            "fastdecode.hf.soft_thinking needs the cache, which holds what was thought; pass use_cache=True."
        )
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        if getattr(config, name, None):
            raise ValueError(
                f"fastdecode.hf.soft_thinking returns the tokens and output.soft; got {name}: leave it out."
            )
    if type(end) is not int or not 0 <= end < model.get_input_embeddings().num_embeddings:
        raise ValueError(
            "end_of_thinking must be the id of the token that ends the thinking, such as the last one of "
            f'tokenizer.encode("</think>"); got {end!r}.'
        )
    if not isinstance(cold_stop, (int, float)) or not 0 <= cold_stop < math.inf:
        raise ValueError(f"cold_stop must be a number of nats >= 0; got {cold_stop!r}.")
    for name, value, least in (("patience", patience, 1), ("max_thinking", most, 0)):
        if not (name == "max_thinking" and value is None) and (type(value) is not int or value < least):
            raise ValueError(f"{name} must be a whole number >= {least}; got {value!r}.")
