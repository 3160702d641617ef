"""The CUDA engine: tensors to addresses. One kernel a call, on torch's current stream of the logits' device; it can be captured in
a CUDA graph, and where seed, step and streams are tensors, the replayed graph reads them again.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import philox
from ..record import STATISTICS, Draw, Mixing, Wanted
from . import reference_soft
from .addresses import check, coordinate, embedding, rows_of, softening, streams_of

_DTYPE = {"tokens": torch.int64, "kept": torch.int64, "status": torch.uint8, "top_ids": torch.int64}


class Engine:
    """See `dispatch.Engine`.

    Args:
        compiled: the module with `truncate_cuda`, `sample_cuda`, `soften_cuda` and `embed_cuda`.
        ranks: blocks for each row; 0: the engine chooses. The answers do not depend on it.
    """

    def __init__(self, compiled: Any, ranks: int = 0):
        check(compiled)
        self._compiled, self.ranks = compiled, ranks

    def truncate(
        self, logits: torch.Tensor, cuts: torch.Tensor, out: torch.Tensor, filter_value: float, vocab_limit: int
    ) -> None:
        """See `dispatch.Engine`."""
        self._compiled.truncate_cuda(
            rows_of(logits, cuts, vocab_limit), (out.data_ptr(), out.stride(0), filter_value), self._where(logits)
        )

    def sample(self, logits: torch.Tensor, cuts: torch.Tensor, draw: Draw, wanted: Wanted) -> dict[str, torch.Tensor]:
        """See `dispatch.Engine`."""
        rows = (logits.shape[0],)
        return self._sample(logits, cuts, 1, rows, rows if draw.flat else (*rows, draw.num_samples), draw, wanted)

    def sample_temperatures(
        self, logits: torch.Tensor, cuts: torch.Tensor, draw: Draw, wanted: Wanted
    ) -> dict[str, torch.Tensor]:
        """`sample` for cuts [B or 1, T, ...]: what is [B] there is [B, T], from one kernel that keeps the row on chip."""
        rows = (logits.shape[0], cuts.shape[1])
        return self._sample(logits, cuts, cuts.shape[1], rows, (*rows, draw.num_samples), draw, wanted)

    def _sample(
        self,
        logits: torch.Tensor,
        cuts: torch.Tensor,
        temperatures: int,
        rows: tuple[int, ...],
        drawn: tuple[int, ...],
        draw: Draw,
        wanted: Wanted,
    ) -> dict[str, torch.Tensor]:
        top, ids = wanted.top_logprobs, wanted.logprobs_of
        shapes: dict[str, tuple[int, ...]] = {"tokens": drawn, "logprobs": drawn, "raw_logprobs": drawn}
        shapes |= {"top_logprobs": (*rows, top), "top_ids": (*rows, top)}
        if ids is not None:
            shapes["logprobs_of"] = tuple(ids.shape)
        outputs = {
            name: torch.empty(shapes.get(name, rows), dtype=_DTYPE.get(name, torch.float32), device=logits.device)
            for name in wanted.fields()
        }

        def address(name: str) -> int:
            return outputs[name].data_ptr() if name in outputs else 0

        self._compiled.sample_cuda(
            rows_of(logits, cuts, draw.vocab_limit), coordinate(draw.seed), coordinate(draw.step), streams_of(draw),
            (temperatures, draw.num_samples, *map(address, ("tokens", "logprobs", "kept", "status"))),
            (*map(address, STATISTICS), top, address("top_logprobs"), address("top_ids"),
             0 if ids is None else ids.shape[1], 0 if ids is None else ids.data_ptr(), address("logprobs_of")),
            self._where(logits),
        )  # fmt: skip
        return outputs

    def soften(
        self, logits: torch.Tensor, cuts: torch.Tensor, candidates: torch.Tensor, draw: Draw, mixing: Mixing, sampled: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        """See `dispatch.Engine`."""
        if candidates.shape[1] > self._compiled.most_candidates:
            return reference_soft.soften(logits, cuts, candidates, draw, mixing, sampled)
        made, arguments = softening(logits, cuts, candidates, draw, mixing, sampled)
        self._compiled.soften_cuda(*arguments, self._where(logits))
        return made

    def embed(self, ids: torch.Tensor, weights: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """See `dispatch.Engine`. An id that has no row in the table makes its row NaN."""
        out, arguments = embedding(ids, weights, table)
        self._compiled.embed_cuda(*arguments, self._where(table))
        return out

    def uniforms(
        self, use: int, ids: torch.Tensor, seed: torch.Tensor, step: torch.Tensor, streams: torch.Tensor
    ) -> torch.Tensor:
        """See `dispatch.Engine`."""
        return philox.uniforms(use, ids, seed, step, streams)

    def targets(self) -> list[None]:
        """See `dispatch.Engine`."""
        return [None]

    def _where(self, logits: torch.Tensor) -> tuple[int, int, int]:
        """Device, stream, blocks for each row."""
        index = logits.device.index
        return index, torch.cuda.current_stream(index).cuda_stream, self.ranks

    def build_info(self) -> dict[str, str]:
        """The architectures that the kernels were compiled for, and the devices of this machine."""
        return {"built for": self._compiled.cuda_built_for(), "devices": "; ".join(self._compiled.cuda_devices())}


def load() -> Engine:
    """The engine of this build.

    Raises:
        ImportError: it was built without CUDA, or no driver or device is there; the message says which.
    """
    from .. import _native

    if not hasattr(_native, "sample_cuda"):
        raise ImportError("this build has no CUDA; reinstall fastdecode where nvcc is, or with FASTDECODE_CUDA=1")
    if not torch.cuda.is_available():
        raise ImportError("torch sees no CUDA device")
    return Engine(_native)
