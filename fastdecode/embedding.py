"""What a model is fed with: the weighted sum of the embeddings of a soft token."""

from __future__ import annotations

import torch

from .soft import SoftTokens, described


def soft_embedding(soft: SoftTokens, weight: torch.Tensor) -> torch.Tensor:
    """[B, D]: the weighted sum of the rows of an embedding table [V, D], in the table's dtype, differentiable in both.

    Sums run in float32 at least and are rounded once. A mixture with one weight of 1 is a bit-exact look-up; a flagged row is NaN.
    """
    if not isinstance(soft, SoftTokens):
        raise TypeError(f"soft must be what fastdecode.soft_tokens returned; got {type(soft).__name__}.")
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(f"weight must be an embedding table [V, D] of floats; got {described(weight)}.")
    ids, weights = soft.ids.to(weight.device), soft.weights.to(weight.device)
    if ids.ndim == 1:
        return _Embedding.apply(weights[None], weight, ids[None]).squeeze(0)
    return _Embedding.apply(weights, weight, ids)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights, table, ids):
        ctx.save_for_backward(weights, table, ids)
        looked_up = table[ids.clamp(min=0)]
        wide = torch.promote_types(table.dtype, torch.float32)
        w = weights.to(wide)[..., None]
        mixed = torch.where((ids >= 0)[..., None], w * looked_up, w).sum(1).to(table.dtype)
        alone = (weights[:, 0] == 1) & (weights[:, 1:] == 0).all(1)
        return torch.where(alone[:, None], looked_up[:, 0], mixed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        weights, table, ids = ctx.saved_tensors
        wide = torch.promote_types(table.dtype, torch.float32)
        grad, real, place = grad.to(wide), (ids >= 0)[..., None], ids.clamp(min=0)
        by_weight = by_table = None
        if ctx.needs_input_grad[0]:
            by_weight = torch.where(real, grad[:, None] * table[place], 0.0).sum(2).to(weights.dtype)
        if ctx.needs_input_grad[1]:
            parts = torch.where(real, grad[:, None] * weights.to(wide)[..., None], 0.0)
            by_table = torch.zeros(table.shape, dtype=wide, device=table.device)
            by_table = by_table.index_add(0, place.flatten(), parts.flatten(0, 1)).to(table.dtype)
        return by_weight, by_table, None
