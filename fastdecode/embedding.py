"""The input of a model for a soft token: the weighted sum of its embeddings."""

from __future__ import annotations

import torch

from . import dispatch
from .arguments import described
from .engines import reference
from .soft import SoftTokens


def soft_embedding(soft: SoftTokens, weight: torch.Tensor) -> torch.Tensor:
    """[B, D]: the weighted sum of the rows of an embedding table [V, D], in the table's dtype, differentiable in both.

    Sums run in float32 at least and are rounded once. A mixture with one weight of 1 is a bit-exact look-up; a flagged row is NaN.
    """
    if not isinstance(soft, SoftTokens):
        raise TypeError(f"soft must be what fastdecode.soft_tokens returned; got {type(soft).__name__}.")
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(f"weight must be an embedding table [V, D] of floats; got {described(weight)}.")
    ids, weights = soft.ids, soft.weights
    if ids.device != weight.device:
        ids, weights = ids.to(weight.device), weights.to(weight.device)
    flat = ids.ndim == 1
    if flat:
        ids, weights = ids[None], weights[None]
    if torch.is_grad_enabled() and (weights.requires_grad or weight.requires_grad):
        mixed = _Embedding.apply(weights, weight, ids)
    else:
        mixed = _embed(weights, weight, ids)
    return mixed.squeeze(0) if flat else mixed


def _embed(weights: torch.Tensor, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    engine: dispatch.Engine = reference
    if table.dtype in _FUSED and table.stride(1) == 1:
        engine = dispatch.engine_for(table.device)
    return engine.embed(ids.contiguous(), weights.to(_wide(table)).contiguous(), table)


_FUSED = (torch.float32, torch.float16, torch.bfloat16)


def _wide(table: torch.Tensor) -> torch.dtype:
    return torch.promote_types(table.dtype, torch.float32)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights, table, ids):
        ctx.save_for_backward(weights, table, ids)
        return _embed(weights, table, ids)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        weights, table, ids = ctx.saved_tensors
        wide = _wide(table)
        grad, real, place = grad.to(wide), (ids >= 0)[..., None], ids.clamp(min=0)
        by_weight = by_table = None
        if ctx.needs_input_grad[0]:
            by_weight = torch.where(real, grad[:, None] * table[place], 0.0).sum(2).to(weights.dtype)
        if ctx.needs_input_grad[1]:
            parts = torch.where(real, grad[:, None] * weights.to(wide)[..., None], 0.0)
            by_table = torch.zeros(table.shape, dtype=wide, device=table.device)
            by_table = by_table.index_add(0, place.flatten(), parts.flatten(0, 1)).to(table.dtype)
        return by_weight, by_table, None
