"""`with patch(model):` calls of `model.generate` inside run our loop, where transformers would sample or decode greedily."""

from __future__ import annotations

import functools
import inspect
import threading
from contextvars import ContextVar
from typing import Any

from transformers.generation import StoppingCriteriaList, StopStringCriteria
from transformers.generation import utils as theirs

from . import caller, stages
from .forward import has_own_loop
from .loop import MODES, sample_with

_LOCK = threading.Lock()
_ENTERED: ContextVar[tuple[patch, ...]] = ContextVar("entered", default=())


class patch:
    """Makes `generate` of one model object use `fastdecode.hf.sample`; nothing in the calls changes, streamers included.

        with fastdecode.hf.patch(model):
            model.generate(**inputs, do_sample=True, min_p=0.05, top_k=0, max_new_tokens=100)

        fastdecode.hf.patch(model, seed=7).start()  # for good, or until .stop()

    What is not plain sampling or greedy decoding goes to transformers untouched: beams, an assistant model or prompt lookup,
    contrastive search, constraints, `custom_generate`, token healing, paged caches, and models with a `generate` or a decoding
    loop of their own (Whisper, for one).

    Only this object's `generate` attribute is set, and when the last context has ended it is as it was. Contexts nest: the
    options of the innermost one hold. Threads: a call uses the context that its own thread entered; where it entered none, the
    one entered last, so a thread started inside may call `generate` for a streamer.

    Args:
        model: a transformers model.
        options: keyword arguments of `fastdecode.hf.sample`; they hold for every call.

    Raises:
        TypeError: this is no such model, or an option is unknown.
    """

    def __init__(self, model: Any, **options: Any):
        if not isinstance(model, theirs.GenerationMixin):
            raise TypeError(
                f"patch takes a transformers model that can generate; got {type(model).__name__}: pass the model inside."
            )
        self.model = model
        self.sample = sample_with(**options)
        self.switches: list[_Switch] = []  # one for each time it was started

    def start(self) -> patch:
        """What entering the context does."""
        with _LOCK:
            switch = vars(self.model).get("generate")
            if not isinstance(switch, _Switch):
                switch = vars(self.model)["generate"] = _Switch(self.model)
            switch.entries.append(self)
            self.switches.append(switch)
        _ENTERED.set((*_ENTERED.get(), self))
        return self

    def stop(self) -> None:
        """What leaving it does.

        Raises:
            RuntimeError: it was not started.
        """
        with _LOCK:
            if not self.switches:
                raise RuntimeError("stop() needs a start() before it; this patch is not running.")
            switch = self.switches.pop()
            switch.entries.remove(self)
            switch.remove_if_unused()
        entered = list(_ENTERED.get())
        if self in entered:  # or another thread had started it
            entered.remove(self)
            _ENTERED.set(tuple(entered))

    def __enter__(self) -> patch:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()


class _Switch:
    """Stands in for the model's `generate` as long as a context is open, and once none is, only passes on."""

    def __init__(self, model: Any):
        self.model = model
        self.entries: list[patch] = []
        self.had_one = "generate" in vars(model)
        self.generate = model.generate  # the class's, or one that other code has put there
        functools.update_wrapper(self, self.generate)

    def remove_if_unused(self) -> None:
        attributes = vars(self.model)
        if self.entries or attributes.get("generate") is not self:
            return  # in use; or other code has wrapped this object and still calls it
        if self.had_one:
            attributes["generate"] = self.generate
        else:
            del attributes["generate"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _LOCK:
            entries = list(self.entries)
        own = [entry for entry in _ENTERED.get() if entry in entries]
        call = _redirected(self.model, args, kwargs, (own or entries)[-1].sample) if entries else None
        return self.generate(*args, **kwargs) if call is None else self.generate(*call.args[1:], **call.kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model is not patched, and must not generate with this one."""
        return getattr, (self.model, "generate")


_SIGNATURE = inspect.signature(theirs.GenerationMixin.generate)


def _redirected(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], sample: Any
) -> inspect.BoundArguments | None:
    """The same call with our loop in it; None where transformers shall go its own way."""
    own = theirs.GenerationMixin
    if type(model).generate is not own.generate or has_own_loop(model):
        return None
    call = _SIGNATURE.bind(model, *args, **kwargs)
    given = call.arguments
    extra = given["kwargs"] = dict(given.get("kwargs", {}))
    if (
        given.get("custom_generate") is not None
        or given.get("assistant_model") is not None
        or caller.ASSISTING & set(extra)
    ):
        return None
    stages.refuse_plans(given.get("logits_processor"))
    defaults = {name: given[name] for name in ("use_model_defaults",) if name in given}  # 4.57
    config, _ = model._prepare_generation_config(given.get("generation_config"), **defaults, **extra)
    if config.get_generation_mode() not in MODES or config.is_assistant or config.token_healing:
        return None
    if config.cache_implementation == "paged":
        return None
    # What generate() keeps from a custom loop is handed over here.
    tokenizer = extra.pop("tokenizer", None)
    if config.stop_strings is not None and tokenizer is not None:
        stop = StopStringCriteria(stop_strings=config.stop_strings, tokenizer=tokenizer)
        given["stopping_criteria"] = StoppingCriteriaList([*(given.get("stopping_criteria") or ()), stop])
        extra["stop_strings"] = None
    bound = {name: given.pop(name) for name in ("streamer", "synced_gpus") if name in given}
    given["custom_generate"] = functools.partial(sample, **bound)
    return call
