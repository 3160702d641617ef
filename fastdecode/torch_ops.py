"""The operators as torch knows them (`torch.ops.fastdecode`), for torch.compile, export and autograd. Eager calls skip them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .record import Draw, Wanted, drop_samples, sample_one_by_one
from .rules import FIELDS


# torch 2.4 does not read annotations that are strings, as they are in this file, so both schemas are written out.
@torch.library.custom_op(
    "fastdecode::truncate",
    mutates_args=(),
    schema="(Tensor logits, Tensor cuts, float filter_value, SymInt vocab_limit) -> Tensor",
)
def truncate(logits: Tensor, cuts: Tensor, filter_value: float, vocab_limit: int) -> Tensor:
    """`fastdecode.truncate` for checked arguments."""
    from .dispatch import engine_for

    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    engine_for(logits.device).truncate(logits.detach(), cuts, out, filter_value, vocab_limit)
    return out


@truncate.register_fake
def _(logits: Tensor, cuts: Tensor, filter_value: float, vocab_limit: int) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.filter_value = inputs[2]
    ctx.save_for_backward(inputs[0], inputs[1], output)
    ctx.vocab_limit = inputs[3]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """A survivor's output is x / T: its gradient is 1 / T, and 0 for the rest."""
    logits, cuts, output = ctx.saved_tensors
    if ctx.filter_value != float("-inf"):  # a survivor could look like a removed token
        output = truncate(logits, cuts, float("-inf"), ctx.vocab_limit)
    temperature = cuts[:, -1, FIELDS.index("temperature")].unsqueeze(1)
    scale = 1 / torch.where(temperature == 0, 1.0, temperature)
    return torch.where(output == float("-inf"), 0.0, grad * scale).to(grad.dtype), None, None, None


truncate.register_autograd(_backward, setup_context=_save_for_backward)


@torch.library.custom_op(
    "fastdecode::sample",
    mutates_args=(),
    schema="(Tensor logits, Tensor cuts, Tensor seed, Tensor step, Tensor streams, SymInt num_samples, SymInt vocab_limit,"
    " str stats, SymInt top_logprobs, Tensor? logprobs_of) -> Tensor[]",
)
def _sample(
    logits: Tensor,
    cuts: Tensor,
    seed: Tensor,
    step: Tensor,
    streams: Tensor,
    num_samples: int,
    vocab_limit: int,
    stats: str,
    top_logprobs: int,
    logprobs_of: Tensor | None,
) -> list[Tensor]:
    """`fastdecode.sample` for checked arguments; the tensors are those of `Wanted.fields()`."""
    from .dispatch import engine_for

    draw = Draw(seed, step, streams, num_samples, vocab_limit)
    wanted = Wanted(frozenset(stats.split()), top_logprobs, logprobs_of)
    outputs = engine_for(logits.device).sample(logits.detach(), cuts, draw, wanted)
    return [outputs[name] for name in wanted.fields()]


@_sample.register_fake
def _(
    logits: Tensor,
    cuts: Tensor,
    seed: Tensor,
    step: Tensor,
    streams: Tensor,
    num_samples: int,
    vocab_limit: int,
    stats: str,
    top_logprobs: int,
    logprobs_of: Tensor | None,
) -> list[Tensor]:
    batch = logits.shape[0]
    shapes = {
        "tokens": ((batch, num_samples), torch.int64),
        "logprobs": ((batch, num_samples), torch.float32),
        "raw_logprobs": ((batch, num_samples), torch.float32),
        "kept": ((batch,), torch.int64),
        "status": ((batch,), torch.uint8),
        "top_logprobs": ((batch, top_logprobs), torch.float32),
        "top_ids": ((batch, top_logprobs), torch.int64),
        "logprobs_of": ((0,) if logprobs_of is None else logprobs_of.shape, torch.float32),
    }
    a_number_per_row = ((batch,), torch.float32)
    fields = Wanted(frozenset(stats.split()), top_logprobs, logprobs_of).fields()
    return [logits.new_empty(shape, dtype=dtype) for shape, dtype in (shapes.get(f, a_number_per_row) for f in fields)]


def sample(logits: Tensor, cuts: Tensor, draw: Draw, wanted: Wanted) -> dict[str, Tensor]:
    """An engine's `sample`, through the registered operator."""
    columns = draw.columns(logits.shape[0], logits.device)
    outputs = _sample(
        logits, cuts, *columns, draw.num_samples, draw.vocab_limit, " ".join(sorted(wanted.stats)), wanted.top_logprobs, wanted.logprobs_of
    )  # fmt: skip
    return drop_samples(dict(zip(wanted.fields(), outputs)), draw)


def sample_temperatures(logits: Tensor, cuts: Tensor, draw: Draw, wanted: Wanted) -> dict[str, Tensor]:
    """An engine's `sample_temperatures`, through the registered operator."""
    return sample_one_by_one(sample, logits, cuts, draw, wanted)
