"""The C++ CPU engine: tensors to addresses. Rows run over torch's threads (`torch.set_num_threads`), without the GIL."""

from __future__ import annotations

import torch

from .. import _native
from ..record import STATISTICS, Draw, Mixing, Wanted
from .addresses import STATISTIC, Numbers, check, coordinate, embedding, rows_of, softening, streams_of

check(_native)


def truncate(
    logits: torch.Tensor, cuts: torch.Tensor, out: torch.Tensor, filter_value: float, vocab_limit: int
) -> None:
    """See `dispatch.Engine`."""
    _native.truncate_cpu(
        rows_of(logits, cuts, vocab_limit), (out.data_ptr(), out.stride(0), filter_value), torch.get_num_threads()
    )


def sample(logits: torch.Tensor, cuts: torch.Tensor, draw: Draw, wanted: Wanted) -> dict[str, torch.Tensor]:
    """See `dispatch.Engine`."""
    rows = logits.shape[0]
    return _sample(logits, cuts, 1, rows, rows if draw.flat else (rows, draw.num_samples), draw, wanted)


def sample_temperatures(
    logits: torch.Tensor, cuts: torch.Tensor, draw: Draw, wanted: Wanted
) -> dict[str, torch.Tensor]:
    """`sample` for cuts [B or 1, T, ...]: what is [B] there is [B, T], from one read of each row for the maxima."""
    rows = (logits.shape[0], cuts.shape[1])
    return _sample(logits, cuts, cuts.shape[1], rows, (*rows, draw.num_samples), draw, wanted)


def _sample(
    logits: torch.Tensor,
    cuts: torch.Tensor,
    temperatures: int,
    rows: int | tuple[int, int],
    shape: int | tuple[int, ...],
    draw: Draw,
    wanted: Wanted,
) -> dict[str, torch.Tensor]:
    # An allocation costs as much as a draw from a short row, so only what is wanted is allocated. One dimension is passed as a
    # number, which is half a microsecond faster than a tuple.
    tokens, logprobs = _INT64.new_empty(shape), _FLOAT32.new_empty(shape)
    kept, status = _INT64.new_empty(rows), _UINT8.new_empty(rows)
    outputs = {"tokens": tokens, "logprobs": logprobs, "kept": kept, "status": status}
    statistics: Numbers = _NO_STATISTICS
    if wanted.stats or wanted.top_logprobs or wanted.logprobs_of is not None:
        statistics = _add_statistics(outputs, rows, shape, wanted)
    _native.sample_cpu(
        rows_of(logits, cuts, draw.vocab_limit), coordinate(draw.seed), coordinate(draw.step), streams_of(draw),
        (temperatures, draw.num_samples, tokens.data_ptr(), logprobs.data_ptr(), kept.data_ptr(), status.data_ptr()),
        statistics, torch.get_num_threads(),
    )  # fmt: skip
    return outputs


def soften(
    logits: torch.Tensor, cuts: torch.Tensor, candidates: torch.Tensor, draw: Draw, mixing: Mixing, sampled: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:  # fmt: skip
    """See `dispatch.Engine`."""
    made, arguments = softening(logits, cuts, candidates, draw, mixing, sampled)
    _native.soften_cpu(*arguments, torch.get_num_threads())
    return made


def embed(ids: torch.Tensor, weights: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """See `dispatch.Engine`."""
    out, arguments = embedding(ids, weights, table)
    _native.embed_cpu(*arguments, torch.get_num_threads())
    return out


def uniforms(
    use: int, ids: torch.Tensor, seed: torch.Tensor, step: torch.Tensor, streams: torch.Tensor
) -> torch.Tensor:
    """`philox.uniforms` in one call instead of a hundred torch operations."""
    out = torch.empty(ids.shape, dtype=torch.float64, device="cpu")
    ids = ids.contiguous()
    rows, n = ids.shape
    at = (seed.data_ptr(), seed.stride(0), step.data_ptr(), step.stride(0), streams.data_ptr(), streams.stride(0))
    _native.uniforms(use, rows, n, ids.data_ptr(), *at, out.data_ptr())
    return out


_NO_STATISTICS = (0,) * len(STATISTIC)

# Outputs are made from these, so that torch.set_default_dtype and set_default_device do not affect them.
_FLOAT32, _INT64, _UINT8 = (
    torch.empty(0, dtype=dtype, device="cpu") for dtype in (torch.float32, torch.int64, torch.uint8)
)


def _add_statistics(
    outputs: dict[str, torch.Tensor], rows: int | tuple[int, int], shape: int | tuple[int, ...], wanted: Wanted
) -> Numbers:
    """Allocates the wanted statistics in `outputs`, and returns the numbers of STATISTIC."""
    for name in wanted.stats:
        outputs[name] = _FLOAT32.new_empty(shape if name == "raw_logprobs" else rows)
    top, ids = wanted.top_logprobs, wanted.logprobs_of
    if top:
        each = (rows, top) if isinstance(rows, int) else (*rows, top)
        outputs["top_ids"] = _INT64.new_empty(each)
        if not wanted.ids_alone:
            outputs["top_logprobs"] = _FLOAT32.new_empty(each)
    if ids is not None:
        outputs["logprobs_of"] = _FLOAT32.new_empty(ids.shape)

    def address(name: str) -> int:
        return outputs[name].data_ptr() if name in outputs else 0

    return (
        *map(address, STATISTICS), top, address("top_logprobs"), address("top_ids"),
        0 if ids is None else ids.shape[1], 0 if ids is None else ids.data_ptr(), address("logprobs_of"),
    )  # fmt: skip


def targets() -> list[str]:
    """The instruction sets that this machine can run, the best one last."""
    return _native.targets()


def use_target(name: str | None) -> None:
    """Use this instruction set from now on; None: the best one.

    Raises:
        ValueError: the name is not one of `targets()`.
    """
    if not _native.use_target(name or targets()[-1]):
        raise ValueError(f"the instruction set must be one of {', '.join(targets())} on this machine; got {name!r}.")


def build_info() -> dict[str, str]:
    """How the extension was built and what it uses."""
    return {"compiler": _native.compiler(), "targets": ", ".join(targets()), "target": _native.target()}


def fields() -> list[str]:
    """The fields of a cut as the engine reads them."""
    return _native.fields()
