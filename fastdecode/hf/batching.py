"""Continuous batching (`generate_batch`, `ContinuousBatchingManager`) with sampling parameters for each request.

transformers has such processors for temperature, top-k and top-p. There a request with top_k=0 is greedy, top_k > V and
temperature=0 fail, and a parameter can only be set where the generation config has it already. Here they mean what they mean
elsewhere, five more rules have them, and all run as one plan. Only transformers 5 has what this needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from transformers.generation import logits_process as theirs
from transformers.generation.continuous_batching import cb_logits_processors as batching

from .. import rules
from ..ops import truncate
from ..plan import plan
from ..rules import Rule, Variant
from .warpers import RULES, single

# In the order of generate(): how a parameter becomes a rule, and the value that switches it off, if there is one.
_PARAMETERS: dict[str, tuple[Callable[..., Rule], float | None]] = {
    "temperature": (rules.temperature, 1.0),
    "top_h": (rules.top_h, None),
    "top_k": (rules.top_k, 0),
    "top_p": (rules.top_p, 1.0),
    "min_p": (rules.min_p, 0.0),
    "typical_p": (rules.typical_p, 1.0),
    "epsilon_cutoff": (rules.epsilon_cutoff, 0.0),
    "eta_cutoff": (rules.eta_cutoff, 0.0),
}


class PerRequestLogitsProcessor(batching.ContinuousBatchingLogitsProcessor):
    """One rule, with a parameter that every request may set by its name: `manager.add_request(ids, min_p=0.1)`.

    As in transformers, top_p=0 keeps the most probable token, and top_k=1 all that tie for it. top_k <= 0 switches top-k off, and temperature=0 makes the
    request greedy.

    Args:
        name: temperature, top_h, top_k, top_p, min_p, typical_p, epsilon_cutoff or eta_cutoff.
        default: for requests that do not set it; None: off.
        top_h_variant: see `fastdecode.top_h`.

    Raises:
        ValueError: the name is unknown, or the default out of range.
    """

    ignored_kwargs = ("filter_value", "min_tokens_to_keep")

    def __init__(self, name: str, default: float | None = None, top_h_variant: Variant = "hf"):
        if name not in _PARAMETERS:
            raise ValueError(f"a parameter of requests must be one of {', '.join(_PARAMETERS)}; got {name!r}.")
        self.name = name
        self.make, off = _PARAMETERS[name]
        self.options = {"variant": top_h_variant} if name == "top_h" else {}
        given = off if default is None else default
        if given is None:
            raise ValueError(f"{name} has no value that switches it off; give it a default.")
        self.default = self.checked(given)
        self.supported_kwargs = {name: Real}

    def checked(self, value: float) -> float:
        """A request's parameter, as the rule takes it. Raises ValueError if it does not."""
        if self.name == "top_k":
            value = max(value, 0)
        if self.name == "top_p" and value == 0:
            value = torch.finfo(torch.float32).tiny
        self.make(value, **self.options)
        return value

    def rule(self, tensor_arg: torch.Tensor, rows: int) -> Rule:
        """The rule for the first `rows` rows."""
        return self.make(tensor_arg[:rows].view(torch.float32), **self.options)

    # ---- what transformers asks for; parameters travel as the bits of a float32 in an int32 ----------------------------

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        default = torch.full_like(int32_tensor, self.default, dtype=torch.float32)
        int32_tensor.copy_(default.view(torch.int32))

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> torch.Tensor:
        given = [request.state.logit_processor_kwargs for request in requests_with_new_token]
        values = [self.checked(kwargs[self.name]) if self.name in kwargs else self.default for kwargs in given]
        return torch.tensor(values, dtype=torch.float32).view(torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        return truncate(single(scores), plan(self.rule(tensor_arg, len(scores)))).to(scores.dtype)


class PerRequestProcessorList(batching.ContinuousBatchingLogitsProcessorList):
    """A list of processors whose `PerRequestLogitsProcessor`s in a row run as one plan."""

    def __init__(self, processors: Sequence[Any]):
        super().__init__(theirs.LogitsProcessorList(processors), drop_unsupported_processors=False)
        self.tensors_required = sum(isinstance(p, batching.ContinuousBatchingLogitsProcessor) for p in processors)

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Refuses a request with a parameter out of range: here only this request fails, later it would be all of them."""
        super().check_kwargs(kwargs)
        for processor in self.logits_processor:
            if isinstance(processor, PerRequestLogitsProcessor) and processor.name in kwargs:
                processor.checked(kwargs[processor.name])

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.Tensor, logits_processor_args: torch.Tensor
    ) -> torch.Tensor:
        waiting: list[Rule] = []
        line = 0
        for processor in self.logits_processor:
            if isinstance(processor, PerRequestLogitsProcessor):
                waiting.append(processor.rule(logits_processor_args[line], len(scores)))
                line += 1
                continue
            scores, waiting = (truncate(single(scores), plan(waiting)), []) if waiting else (scores, [])
            if isinstance(processor, batching.ContinuousBatchingLogitsProcessor):
                scores = processor(scores, logits_processor_args[line])
                line += 1
            else:
                scores = processor(input_ids, scores)
        return truncate(single(scores), plan(waiting)) if waiting else scores


def per_request(manager: Any, top_h_variant: Variant = "hf", **defaults: float | None) -> Any:
    """Let the requests of a continuous batch set their sampling parameters, with ours in place of transformers' processors.

        manager = model.init_continuous_batching(generation_config=GenerationConfig(do_sample=True, max_new_tokens=100))
        fastdecode.hf.per_request(manager, temperature=1.0, min_p=0.05)
        manager.start()
        manager.add_request(ids, min_p=0.1)
        manager.add_request(ids, temperature=0)

    Args:
        manager: not started yet.
        top_h_variant: see `fastdecode.top_h`.
        defaults: the parameters that requests may set, with what holds for those that do not (None: off). What the generation
            config sets counts as given here; nothing else does, so there is no hidden top_k=50.

    Returns:
        The manager.

    Raises:
        ValueError: a name is unknown, a value out of range, or the generation config does not sample.
        RuntimeError: the manager has been started.
    """
    if manager.batch_processor is not None or manager.is_running():
        raise RuntimeError("per_request must come before manager.start(), which reads the processors.")
    config = manager.generation_config
    if not config.do_sample:
        raise ValueError("sampling parameters need do_sample=True in the generation config; got do_sample=False.")
    found = {name: getattr(config, name, None) for name in _PARAMETERS}
    given = {name: value for name, value in found.items() if value is not None} | defaults
    order = [name for name in _PARAMETERS if name in given] + [name for name in given if name not in _PARAMETERS]
    ours = [PerRequestLogitsProcessor(name, given[name], top_h_variant) for name in order]
    old = manager.logit_processor.logits_processor
    replaced = (*RULES, *batching.CLASSIC_TO_CB_PROCESSORS_MAP.values())
    places = [place for place, processor in enumerate(old) if type(processor) in replaced]
    place = places[0] if places else len(old)
    before, after = old[:place], [processor for processor in old[place:] if type(processor) not in replaced]
    manager.logit_processor = PerRequestProcessorList([*before, *ours, *after])
    return manager
