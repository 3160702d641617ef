"""One step of the loop after the model: from logits to tokens, and what `generate` may be asked to return of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation import utils as theirs

from .. import ops, rules
from ..plan import plan
from ..record import STATISTICS, Sample, Statistics
from . import stages
from .warpers import fresh_seed, single

_GREEDY = plan(rules.temperature(0.0))


@dataclass
class SampledDecoderOnlyOutput(theirs.GenerateDecoderOnlyOutput):
    """transformers' output, and `stats`: a `fastdecode.Sample` whose tensors are [B, generated tokens].

    Where a row had ended, its floats are 0 and its `kept` is 0; where it had not, `kept` is at least 1.
    """

    stats: Sample | None = None


@dataclass
class SampledEncoderDecoderOutput(theirs.GenerateEncoderDecoderOutput):
    """As `SampledDecoderOnlyOutput`."""

    stats: Sample | None = None


OUTPUTS = {
    (False, False): theirs.GenerateDecoderOnlyOutput, (False, True): theirs.GenerateEncoderDecoderOutput,
    (True, False): SampledDecoderOnlyOutput, (True, True): SampledEncoderDecoderOutput,
}  # fmt: skip


class Draw:
    """From logits to tokens, and what has to be remembered about it."""

    def __init__(
        self,
        chosen: stages.Stages,
        config: Any,
        prompt: torch.Tensor,
        seed: Any,
        streams: Any,
        stats: Statistics,
    ):
        self.stages, self.stats = chosen, stats
        self.greedy = not config.do_sample
        # Greedy text leaves torch's generator alone, as in transformers.
        self.seed = seed if seed is not None else 0 if self.greedy else fresh_seed()
        self.streams = streams
        if prompt.device.type != "cpu":  # once, and not in every step
            self.streams = torch.arange(len(prompt), device=prompt.device) if streams is None else streams
            self.seed, self.streams = (
                value.to(prompt.device) if isinstance(value, torch.Tensor) else value
                for value in (self.seed, self.streams)
            )
        remembers = config.return_dict_in_generate
        self.scores: list[torch.Tensor] | None = [] if remembers and config.output_scores else None
        self.logits: list[torch.Tensor] | None = [] if remembers and config.output_logits else None
        self.samples: list[Any] = []  # a Sample for each step
        self.live: list[torch.Tensor] = []
        self.steps = 0
        self.plan = chosen.last + _GREEDY if self.greedy else chosen.last

    def __call__(
        self, input_ids: torch.Tensor, logits: torch.Tensor, unfinished: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A token for each row, and when sampling the status of the draws."""
        if self.logits is not None:
            self.logits.append(_copied(logits, input_ids))
        if self.stages.before or self.scores is not None:
            logits = self.stages.scores(input_ids, _copied(logits, input_ids))
        if self.scores is not None:
            self.scores.append(self.stages.processed(input_ids, logits))
        drawn = None
        if self.stats or not self.greedy:
            drawn = ops.sample(
                single(logits), self.plan, seed=self.seed, step=self.steps, streams=self.streams, stats=self.stats
            )
            self.steps += 1
        if self.stats:
            self.samples.append(drawn)
            self.live.append(unfinished)
        if drawn is not None and not self.greedy:
            return drawn.tokens.to(input_ids.device), drawn.status
        last = self.stages.last
        return (ops.truncate(single(logits), last) if last.rules else logits).argmax(-1).to(input_ids.device), None

    def scores_so_far(self) -> tuple[torch.Tensor, ...] | None:
        return None if self.scores is None else tuple(self.scores)

    def found(self, tokens: torch.Tensor) -> dict[str, Any]:
        """The fields of the output; `tokens` [B, n] are those that stay."""
        steps = tokens.shape[1]
        found: dict[str, Any] = {
            name: None if kept is None else tuple(kept[:steps])
            for name, kept in (("scores", self.scores), ("logits", self.logits))
        }
        if self.stats:
            live = torch.stack(self.live[:steps], dim=1)
            fields = {}
            for name in ("logprobs", "kept", "status", *STATISTICS):
                if getattr(self.samples[0], name) is not None:
                    column = torch.stack([getattr(drawn, name) for drawn in self.samples[:steps]], dim=1).to(
                        live.device
                    )
                    fields[name] = column.masked_fill(~live, 0)
            found["stats"] = Sample(tokens=tokens, **fields)
        return found


def _copied(logits: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """What transformers gives to its processors."""
    return logits.to(copy=True, dtype=torch.float32, device=input_ids.device)


class Layers:
    """Attentions and hidden states, under the names that the output has for them."""

    def __init__(self, config: Any, is_encoder_decoder: bool):
        self.encoder = is_encoder_decoder
        kinds = (["attentions"] if config.output_attentions else []) + (
            ["hidden_states"] if config.output_hidden_states else []
        )
        self.wanted = kinds if config.return_dict_in_generate else []
        names = [f"decoder_{kind}" if is_encoder_decoder else kind for kind in self.wanted]
        if is_encoder_decoder and "attentions" in self.wanted:
            names.append("cross_attentions")
        self.kept: dict[str, list[Any]] = {name: [] for name in names}

    def keep(self, outputs: Any) -> None:
        for name, kept in self.kept.items():
            kept.append(getattr(outputs, name))

    def found(self, steps: int, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """The fields of the output, for the first `steps` steps."""
        found: dict[str, Any] = {name: tuple(kept[:steps]) for name, kept in self.kept.items()}
        if self.encoder:
            found |= {f"encoder_{kind}": model_kwargs["encoder_outputs"].get(kind) for kind in self.wanted}
        return found
