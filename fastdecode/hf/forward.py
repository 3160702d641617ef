"""Running the model, step by step, the way transformers' `_sample` runs it: 5.x, and 4.57."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from transformers import cache_utils
from transformers.generation import utils as theirs

_OLD = not hasattr(theirs.GenerationMixin, "_prefill")  # 4.57: one `prepare_inputs_for_generation` serves all steps

# What models and outputs call the cache: 5.24 has renamed it.
CACHE = "cache" if "cache" in theirs.GenerateDecoderOnlyOutput.__dataclass_fields__ else "past_key_values"


CACHE_NAMES = tuple(theirs.ALL_CACHE_NAMES)

# Arguments of a step, besides the cache, that hold a part for each row; `select` knows these and no others.
_OF_ROWS = ("attention_mask", "position_ids", "token_type_ids")
_STATES: Any = getattr(cache_utils, "LinearAttentionCacheLayerMixin", ())  # what 4.57 has instead is no DynamicCache


class Forward:
    """Calls the model, and holds what it needs from step to step, above all the cache."""

    def __init__(self, model: Any, input_ids: torch.Tensor, generation_config: Any, model_kwargs: dict[str, Any]):
        self.model, self.config, self.kwargs = model, generation_config, model_kwargs
        compiled = model._valid_auto_compile_criteria(model_kwargs, generation_config)
        self.call = model.get_compiled_call(generation_config.compile_config) if compiled else model.__call__
        self.first = True
        self.rows = len(input_ids)
        if _OLD:
            self.kwargs = model._get_initial_cache_position(input_ids.shape[1], input_ids.device, model_kwargs)

    def __call__(self, input_ids: torch.Tensor, embedded: torch.Tensor | None = None) -> Any:
        """The model's output for the tokens that it has not seen yet; after the prompt, for the last one as `embedded` [B, 1, D]."""
        outputs = self._prefill(input_ids) if self.first else self._step(input_ids, embedded)
        self.first = False
        self.kwargs = self.model._update_model_kwargs_for_generation(
            outputs, self.kwargs, is_encoder_decoder=self.model.config.is_encoder_decoder
        )
        return outputs

    def _prefill(self, input_ids: torch.Tensor) -> Any:
        if not _OLD:
            first = not self.config.is_assistant
            return self.model._prefill(input_ids, self.config, self.kwargs, is_first_iteration=first)
        if self.config.prefill_chunk_size is not None:
            self.kwargs = self.model._prefill_chunking(input_ids, self.config, **self.kwargs)
            return self._step(input_ids)
        return self.model(**self.model.prepare_inputs_for_generation(input_ids, **self.kwargs), return_dict=True)

    def _step(self, input_ids: torch.Tensor, embedded: torch.Tensor | None = None) -> Any:
        options = {} if _OLD else {"next_sequence_length": 1 if self.kwargs["use_cache"] else None}
        inputs = self.model.prepare_inputs_for_generation(input_ids, **options, **self.kwargs)
        if embedded is not None:
            inputs |= {"input_ids": None, "inputs_embeds": embedded}
        return self.call(**inputs, return_dict=True)

    def decoding(self) -> contextlib.AbstractContextManager[Any]:
        """A context for the steps after the first: some models are rearranged for decoding."""
        return contextlib.nullcontext() if _OLD else self.model._optimize_model_for_decode()

    # ---- the cache ---------------------------------------------------------------------------------------------------

    @property
    def cache(self) -> Any:
        return next((self.kwargs[name] for name in CACHE_NAMES if name in self.kwargs), None)

    def outlives_the_call(self) -> bool:
        """Can the caller see the cache afterwards? 4.57 does not say whose it is."""
        return self.config.return_dict_in_generate or getattr(self.cache, "_is_user_defined", _OLD)

    def can_be_shortened(self) -> bool:
        """Can the last tokens be taken out of the cache? Only where every layer keeps all of them."""
        cache = getattr(self.cache, "self_attention_cache", self.cache)
        return cache is None or all(
            type(layer) is cache_utils.DynamicLayer for layer in getattr(cache, "layers", [None])
        )

    def shorten(self, tokens: int) -> None:
        if tokens and self.cache is not None and self.outlives_the_call():
            self.cache.crop(-tokens)

    # ---- the rows ----------------------------------------------------------------------------------------------------

    def can_select(self) -> bool:
        """Is all that belongs to a row where `select` finds it, as far as can be told before the prompt is read?

        Not so with caches of a model's own, encoders, and prompts with images or other inputs than text.
        """
        model, cache = self.model, self.cache
        layers = getattr(cache, "layers", ())
        own = theirs.GenerationMixin._update_model_kwargs_for_generation
        names = (*_OF_ROWS, "cache_position", *CACHE_NAMES)
        return (
            type(cache) is cache_utils.DynamicCache
            and not getattr(cache, "offloading", False)
            and all(type(layer).__module__ == cache_utils.__name__ for layer in layers)
            and (
                not _OLD or model.config.get_text_config() is model.config
            )  # others keep the offsets of their positions
            and type(model)._update_model_kwargs_for_generation is own
            and all(
                name in names or isinstance(value, (bool, int, type(None))) or value == {}  # no images
                for name, value in self.kwargs.items()
            )
        )

    def keeps_all_in_the_cache(self) -> bool:
        """The rest of the answer, after the prompt: Recurrent Gemma leaves its layers of the cache empty, and has states elsewhere."""
        if not (_OLD or getattr(self.model, "_is_stateful", False)):  # 4.57 does not say it of Recurrent Gemma
            return True
        return all(
            any((*layer.is_conv_states_initialized.values(), *layer.is_recurrent_states_initialized.values()))
            if isinstance(layer, _STATES)
            else layer.is_initialized
            for layer in self.cache.layers
        )

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows of the batch, in this order; a row may come more than once."""
        for name in _OF_ROWS:
            value = self.kwargs.get(name)
            batch = 1 if value is not None and value.ndim == 3 else 0  # positions may have several dimensions
            if value is not None and value.shape[batch] == self.rows:  # one row of positions may serve all
                self.kwargs[name] = value.index_select(batch, rows.to(value.device))
        # Not batch_repeat_interleave and batch_select_indices: layers with states lack them or, where there is attention too,
        # inherit what leaves the states as they were.
        self.cache.reorder_cache(rows)
        self.rows = len(rows)


def has_own_loop(model: Any) -> bool:
    """Does this model decode in a way of its own, which a loop of ours would get wrong?"""
    return getattr(type(model), "_sample", None) is not theirs.GenerationMixin._sample


def synced(model: Any) -> bool:
    """Must all processes go on until the last one has finished? As `generate` finds out for its own loops."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    sharded = theirs.is_deepspeed_zero3_enabled() or theirs.is_fsdp_managed_module(model)
    return sharded and torch.distributed.get_world_size() > 1
