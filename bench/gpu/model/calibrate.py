"""The model read against kernels whose times are published: FlashInfer's softmax and samplers, from machine code that is compiled
here; and the same reading for what they would take for our rows.

Not part of the project and never committed: `pip download --no-deps flashinfer-python==0.6.18.post1 apache-tvm-ffi nvidia-curand`,
unpack, then `nvcc -std=c++17 -O3 -use_fast_math -cubin -arch=sm_90a -I(flashinfer/data/include, flashinfer/data/csrc, tvm_ffi/include,
the folder of curand_kernel.h) flashinfer/data/csrc/sampling.cu`, which takes minutes. Then `python -m bench.gpu.model --peer sampling.cubin`.

Each of these kernels has blocks of 1024 threads and goes through a row in steps of 1024 vectors. The samplers have one block a row;
those of top-p and top-k go through the row until they have drawn a token above their limit: how often is simulated in rounds.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import rounds, sass
from .constants import GRAPH_KERNEL, MEMORY, Device
from .paths import cycles, meets, way

THREADS, REGISTERS = 1024, 65536  # of a block; of a multiprocessor
FLOATS_A_LOAD = 4
SLICE, SMALL_BATCH = 8192, 128  # its softmax: tokens of a block's slice, up to this batch
SEED = 42  # of the published inputs' generator; any other gives nearly the same

SAMPLERS = {
    "none": "SamplingFromProbKernel", "min_p": "MinPSamplingFromProbKernel", "top_p": "TopPSamplingFromProbKernel",
    "top_k": "TopKSamplingFromProbKernel",
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """As FlashInfer's repository gives it (benchmarks/samples), on a GPU that it does not name, for probabilities that are uniform
    numbers over their sum; `rule`: "" for the softmax."""

    what: str
    rule: str
    limit: float
    rows: int
    vocab: int
    us: float


PUBLISHED = (
    Published("softmax", "", 0, 64, 128256, 35.6),
    Published("sampling_from_probs", "none", 0, 64, 128256, 42.8),
    Published("min_p_sampling_from_probs, .05", "min_p", 0.05, 32, 128256, 41.8),
    Published("top_p_sampling_from_probs, .95", "top_p", 0.95, 32, 128256, 71.7),
    Published("top_k_sampling_from_probs, 100", "top_k", 100, 32, 128256, 498.0),
)


@dataclass(frozen=True)
class Pass:
    """One time through the row, in steps of 1024 threads that take `vector` floats each, with block barriers between sections."""

    vector: int
    sections: tuple[tuple[int, int], ...]  # instructions of a warp, and cycles of a warp alone

    @property
    def instructions(self) -> int:
        return sum(count for count, _ in self.sections)

    def us(self, device: Device, tokens: float, blocks: int) -> float:
        """For `blocks` that share a multiprocessor. At a barrier all warps wait for the last."""
        issued = blocks * THREADS / 32 / device.schedulers
        step = sum(max(time, issued * count) for count, time in self.sections)
        return tokens / (THREADS * self.vector) * step / device.clock


@dataclass(frozen=True)
class Kernel:
    passes: tuple[Pass, ...]  # as they stand in the code
    registers: int

    def run(self, device: Device, tokens: Sequence[Sequence[float]], moved: float) -> float:
        """Microseconds for blocks that take so many tokens each in each pass; `moved`: bytes from and to memory."""
        fit = max(1, min(2048, REGISTERS // (-(-self.registers // 8) * 8)) // THREADS)
        sharing = min(fit, -(-len(tokens) // device.multiprocessors))
        each = [sum(p.us(device, n, sharing) for p, n in zip(self.passes, block, strict=True)) for block in tokens]
        waves = sum(each) / (device.multiprocessors * fit)
        return GRAPH_KERNEL + max(*each, waves, moved / device.read)


def kernel(code: sass.Code) -> Kernel:
    """Innermost loops alone: the rounds of a sampler are loops around them. A loop of one load a step takes what is left over
    by an unrolled one."""
    passes = []
    loads = [place for place, each in enumerate(code.instructions) if each.name == "LDG" and ".128" in each.opcode]
    for first, last in sorted({loop for place in loads if (loop := code.loop_around(place))}):
        path = way(code, first, last, meets("LDG"))
        vector = sum(FLOATS_A_LOAD * each.opcode.count(".128") for each in path if each.name == "LDG")
        if vector > FLOATS_A_LOAD:
            sections: list[list[sass.Instruction]] = [[]]
            for each in path:
                sections[-1].append(each)
                if each.name == "BAR":
                    sections.append([])
            passes.append(Pass(vector, tuple((len(part), cycles(part, MEMORY)) for part in sections if part)))
    if not passes:
        raise ValueError(
            f"{code.name} must have an unrolled loop of 16-byte loads, and none was found; see bench/gpu/model/calibrate.py."
        )
    numbers = (int(n) for each in code.instructions for n in re.findall(r"\bR(\d+)\b", each.text))
    return Kernel(tuple(passes), 1 + max(numbers, default=0))


class Peer:
    def __init__(self, device: Device, cubin: Path):
        self.device, self._codes = device, sass.read(cubin)
        self._read: dict[str, Kernel] = {}

    def _kernel(self, name: str) -> Kernel:
        if name not in self._read:
            self._read[name] = kernel(self._code(name))
        return self._read[name]

    def _code(self, name: str) -> sass.Code:
        # Blocks of 1024 threads, vectors of 4, deterministic: what is called for float32 and a V that 4 divides.
        pattern = re.compile(rf"{len(name)}{name}ILj{THREADS}E.*Lj{FLOATS_A_LOAD}E(Lb1Ef|fE|fLb0E)")
        found = sorted(each for each in self._codes if pattern.search(each) and not each.startswith("$"))
        if not found:
            raise ValueError(
                f"The cubin must hold {name} of FlashInfer, and does not; see bench/gpu/model/calibrate.py."
            )
        return self._codes[found[0]]

    def softmax(self, rows: int, vocab: int) -> float:
        row = 4.0 * vocab
        if rows > SMALL_BATCH:
            fused = self._kernel("OnlineSoftmaxFusedKernel")
            return fused.run(self.device, [[vocab] * len(fused.passes)] * rows, rows * 3 * row)
        slices = -(-vocab // SLICE)
        maps = self._kernel("OnlineSoftmaxMapKernel").run(self.device, [[vocab / slices]] * rows * slices, rows * row)
        return maps + self._kernel("OnlineSoftmaxReduceKernel").run(self.device, [[vocab]] * rows, rows * 2 * row)

    def sampler(self, rule: str, limit: float, probabilities: torch.Tensor, rows: int) -> float:
        """For so many rows, which are those given, again and again."""
        code, vocab = self._kernel(SAMPLERS[rule]), probabilities.shape[1]
        seen = [rounds.tokens(row, rule, limit, SEED + k) for k, row in enumerate(probabilities)]
        return code.run(self.device, [seen[k % len(seen)] for k in range(rows)], rows * vocab * 4)

    def published(self, case: Published) -> float:
        if not case.rule:
            return self.softmax(case.rows, case.vocab)
        uniform = torch.rand(case.rows, case.vocab, generator=torch.Generator().manual_seed(SEED))
        return self.sampler(case.rule, case.limit, uniform / uniform.sum(1, keepdim=True), case.rows)

    def instructions(self, case: Published) -> list[float]:
        """Of a warp, for a float of each of its lanes, in each pass."""
        names = [SAMPLERS[case.rule]] if case.rule else ["OnlineSoftmaxMapKernel", "OnlineSoftmaxReduceKernel"]
        return [each.instructions / each.vector for name in names for each in self._kernel(name).passes]
