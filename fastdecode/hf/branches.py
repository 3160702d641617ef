"""Several texts of each prompt: behind one prefill where the model's cache can be split into rows, and elsewhere side by side."""

from __future__ import annotations

import copy
from typing import Any

import torch

from . import forward


class Branches:
    """Runs the model for several texts of each prompt.

    Where the parts of the cache that belong to a row can be copied, a prompt is read once and its rows branch off behind it; rows
    that are done leave the batch. Elsewhere each row reads the prompt, and all stay to the end.
    """

    def __init__(self, model: Any, ids: torch.Tensor, config: Any, kwargs: dict[str, Any], times: int):
        self.model, self.ids, self.config, self.kwargs, self.times = model, ids, config, kwargs, times
        self.run = forward.Forward(model, ids, config, dict(kwargs))
        self.can_select = self.run.can_select()

    def prefill(self) -> torch.Tensor:
        """Logits of the first new token for each row, [rows, V]."""
        if self.can_select:
            empty = {name: copy.deepcopy(self.kwargs[name]) for name in forward.CACHE_NAMES if name in self.kwargs}
            logits: torch.Tensor = self.run(self.ids).logits[:, -1]
            self.can_select = self.run.keeps_all_in_the_cache()
            if self.times == 1:
                return logits
            if self.can_select:
                rows = torch.arange(len(self.ids), device=self.ids.device).repeat_interleave(self.times)
                self.keep(rows)
                return logits[rows.to(logits.device)]
            self.kwargs |= empty
        self.ids, self.kwargs = self.model._expand_inputs_for_generation(
            input_ids=self.ids,
            expand_size=self.times,
            is_encoder_decoder=self.model.config.is_encoder_decoder,
            **self.kwargs,
        )
        self.run = forward.Forward(self.model, self.ids, self.config, self.kwargs)
        return self.run(self.ids).logits[:, -1]

    def keep(self, rows: torch.Tensor) -> None:
        rows = rows.to(self.ids.device)
        self.run.select(rows)
        self.ids = self.ids[rows]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits after one more token for each row."""
        self.ids = torch.cat([self.ids, tokens.to(self.ids)[:, None]], dim=1)
        return self.run(self.ids).logits[:, -1]
