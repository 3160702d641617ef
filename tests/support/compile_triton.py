"""Compiles the Triton engine's kernels for a GPU that is not there, by calling the engine with launches left out, and judges
what comes out: `make gpu-compile`, and test_triton_compiled.py in a process of its own.

    python -m tests.support.compile_triton cuda:90 [float32 bfloat16 ...]

Prints one line for each kernel; exits with 1 and one sentence for each fault: a call that fails, a kernel that keeps variables in
memory for want of registers, a kernel compiled again for another batch, length, plan, seed or value, and an odd row that costs
more than 1.5 times an even one.
"""

from __future__ import annotations

import argparse
import ast
import functools
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import fastdecode as fd
from bench.gpu.model import sass
from fastdecode import dispatch
from fastdecode.engines.triton import launch
from tests.support.cases import CHAINS, TYPICAL

DTYPES = ("float32", "bfloat16", "float16")
EVEN, ODD = "even", "odd"  # can a row be read 16 bytes at a time?
ODD_COST = 1.5

# How many variants of a kernel may be compiled, for one dtype and for even or odd rows: rows_kernel with and without a draw, the
# kernel of soft tokens for few candidates and for many.
VARIANTS = {"rows_kernel": 2, "soften_kernel": 2}
KERNELS = (
    "measure_kernel",
    "rows_kernel",
    "write_kernel",
    "statistics_kernel",
    "best_kernel",
    "soften_kernel",
    "embed_kernel",
)
# Functions that read a tile of logits: a loop around such a read is hot.
READERS = ("tokens_at", "write_kernel")


@dataclass
class Variant:
    """`spills`: instructions that move a variable between registers and memory. `hot`: instructions of the loops around a read
    of logits, by the function that the loop is in; None for GPUs whose listings are not looked into."""

    kernel: str
    dtype: str
    rows: str
    cases: list[str]
    instructions: int
    spills: int
    registers: int
    hot: dict[str, int] | None = None


READS_NO_ROWS = ("soften_kernel", "embed_kernel")


class NoGpu:
    """What Triton asks the driver of a GPU before it compiles."""

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


# ---- what is called --------------------------------------------------------------------------------------------------


def calls(dtype: torch.dtype, rows: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Everything that the engine is asked for, each with a name: all plans, dtypes of answers, batches, coordinates, alignments."""
    vocab = 128256 if rows == EVEN else 50257
    limit = vocab - 256 if rows == EVEN else vocab - 255
    x = torch.zeros(4, vocab, dtype=dtype)
    number = torch.arange(1, 10)
    top_p = fd.plan(fd.top_p(0.95))
    ids = torch.zeros(4, 3, dtype=torch.int64)
    per_row = fd.plan(fd.top_p(number[:4] / 10), fd.temperature(number[:4] / 10))
    table = torch.zeros(vocab, 64, dtype=dtype)

    for case in (*TYPICAL, *CHAINS):
        yield f"sample, {case.name}", lambda case=case: fd.sample(x, case.make(4), seed=1)
    yield "sample, parameters by row", lambda: fd.sample(x, per_row, seed=1)
    for batch in (1, 2, 3, 7, 16, 33):
        some = torch.zeros(batch, 1000 if rows == EVEN else 1001, dtype=dtype)
        yield (
            f"B={batch}",
            lambda some=some, n=batch: fd.sample(some, top_p, seed=2**63 + n, step=2**32 - 1, num_samples=n),
        )
    for some in (number[:4], number[1:5]):  # at another alignment
        yield "tensors of coordinates", lambda some=some: fd.sample(x, top_p, seed=some, step=some, streams=some)
    yield "vocab_limit", lambda: fd.sample(x, top_p, seed=16, vocab_limit=limit)
    yield "stats", lambda: fd.sample(x, top_p, seed=1, stats=True)
    yield "one statistic", lambda: fd.sample(x, top_p, seed=1, stats=("margin",))
    yield "top_logprobs", lambda: fd.sample(x, top_p, seed=1, top_logprobs=5)
    yield "logprobs_of", lambda: fd.sample(x, top_p, seed=1, logprobs_of=ids)
    yield "temperatures", lambda: fd.sample_temperatures(x, (0.5, 0.0, 2.0), top_p, num_samples=2, seed=1, stats=True)
    yield "truncate", lambda: fd.truncate(x, top_p)
    yield "truncate, parameters by row", lambda: fd.truncate(x, per_row, filter_value=float("nan"), vocab_limit=limit)
    yield "truncate in place", lambda: fd.truncate(x, top_p, out=x, filter_value=-1e4)
    for noise in ("none", "gumbel", "multi"):  # "dirichlet" has no kernel
        yield f"soft, {noise}", lambda noise=noise: fd.soft_tokens(x, top_p, noise=noise, seed=1)
    yield (
        "soft, many candidates",
        lambda: fd.soft_tokens(x, top_p, noise="gumbel", top_m=100, seed=1, tau=number[:4] / 10),
    )
    yield "embedding", lambda: fd.soft_embedding(fd.soft_tokens(x, top_p, seed=1), table)
    if rows == ODD:  # an even V that starts where 16 bytes do not
        shifted = torch.zeros(2 * 1000 + 1, dtype=dtype)[1:].view(2, 1000)
        yield "shifted", lambda: (fd.sample(shifted, top_p, seed=1), fd.truncate(shifted, top_p))


def compiled(target: GPUTarget, dtypes: list[str]) -> tuple[list[Variant], list[str]]:
    """All that the calls compile, and what went wrong."""
    variants: dict[tuple[str, str], Variant] = {}
    faults: list[str] = []
    case = [DTYPES[0], EVEN, ""]
    run = JITFunction.run

    def warm(self, *arguments, **options):
        kernel = run(self, *arguments, **{**options, "warmup": True})
        dtype, rows, name = case
        rows = EVEN if self.__name__ in READS_NO_ROWS else rows
        found = variants.get((kernel.hash, rows))
        if found is None:
            found = variants[kernel.hash, rows] = measured(self.__name__, kernel.asm, dtype, rows)
        found.cases.append(name)
        return kernel

    driver.set_active(NoGpu(target))
    dispatch.ENGINES["triton"] = launch
    dispatch.PREFERENCE["cpu"] += ("triton",)
    JITFunction.run = warm
    try:
        with dispatch.use("triton"):
            for dtype in dtypes:
                for rows in (EVEN, ODD):
                    for name, call in calls(getattr(torch, dtype), rows):
                        case[:] = dtype, rows, name
                        try:
                            call()
                        except Exception as error:
                            faults.append(f"{dtype}, {rows} rows, {name}: {type(error).__name__}: {str(error)[-500:]}")
    finally:
        JITFunction.run = run
    return list(variants.values()), faults


# ---- what came out ---------------------------------------------------------------------------------------------------


def measured(kernel: str, asm: dict, dtype: str, rows: str) -> Variant:
    if "cubin" not in asm:  # of an AMD GPU: the compiler says it at the end of its listing
        text = asm["amdgcn"]
        said = {name: int(n) for name, n in re.findall(r"\.(vgpr_spill_count|vgpr_count):\s+(\d+)", text)}
        instructions = len(re.findall(r"^\t[a-z]\w+ ", text, re.M))
        return Variant(kernel, dtype, rows, [], instructions, said["vgpr_spill_count"], said["vgpr_count"])
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(asm["cubin"])
        registers = re.search(r"REG:(\d+)", sass.run([sass.tool("cuobjdump"), "-res-usage", str(cubin)]))
        codes = sass.read(cubin, lines=True)
    assert registers and kernel in codes, f"the listing of {kernel} is not as expected: {[*codes]}"
    instructions = sum(len(code.instructions) for code in codes.values())
    spills = sum(code.count("LDL", "STL") for code in codes.values())
    return Variant(kernel, dtype, rows, [], instructions, spills, int(registers[1]), hot_loops(codes[kernel]))


def hot_loops(code: sass.Code) -> dict[str, int]:
    loops = set()
    for place, instruction in enumerate(code.instructions):
        if instruction.name == "LDG" and instruction.lines:
            reader, *callers = (_function_at(*line) for line in instruction.lines)
            loop = code.loop_around(place)
            if reader in READERS and loop:
                loops.add((callers[0] if callers else reader, loop))
    hot: dict[str, int] = {}
    for name, (first, last) in loops:
        hot[name] = hot.get(name, 0) + last - first + 1
    return hot


@functools.cache
def _functions(path: str) -> list[tuple[int, int, str]]:
    tree = ast.parse(_source(Path(path)).read_text())
    return [
        (node.lineno, node.end_lineno or 0, node.name) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    ]


def _source(path: Path) -> Path:
    """Triton knows a kernel that it has compiled by its text, and its lines by the file it was in then: perhaps one of another
    checkout, which may be gone."""
    package = Path(fd.__file__).parent
    if package.name in path.parts:
        place = len(path.parts) - path.parts[::-1].index(package.name)
        path = package.joinpath(*path.parts[place:])
    if not path.exists():
        raise FileNotFoundError(
            f"{path} must be there, because a kernel was compiled from it, and is not; remove build/triton."
        )
    return path


def _function_at(path: str, line: int) -> str:
    """Loads of 16 bytes are said to be on the line below the last one of their function."""
    return next((name for first, last, name in _functions(path) if first <= line <= last + 1), "")


def faults_of(variants: list[Variant]) -> list[str]:
    """One sentence for each."""
    faults = []
    groups: dict[tuple[str, str, str], list[Variant]] = {}
    for variant in variants:
        groups.setdefault((variant.kernel, variant.dtype, variant.rows), []).append(variant)
        if variant.hot == {} and variant.kernel not in READS_NO_ROWS:
            faults.append(
                f"{variant.kernel} reads logits, and no loop around a read of logits was found in it for {variant.rows} rows."
            )
        if variant.spills and variant.rows == EVEN:
            faults.append(
                f"{variant.kernel} must keep its variables in registers for even rows; it spills {variant.spills} times for "
                f"{variant.dtype}: make its tiles smaller."
            )
    for (kernel, dtype, rows), some in groups.items():
        allowed = VARIANTS.get(kernel, 1)
        if len(some) > allowed:
            seen = "; ".join(", ".join(sorted(set(variant.cases))[:4]) for variant in some)
            faults.append(
                f"{kernel} must be compiled {allowed} times for {dtype} and {rows} rows, whatever the batch and the values; "
                f"got {len(some)}: {seen}."
            )
        even = groups.get((kernel, dtype, EVEN), [])
        for name, cost in worst(some).items() if rows == ODD else ():
            base = worst(even).get(name, 0)
            if base and cost > ODD_COST * base:
                faults.append(
                    f"{name} in {kernel} may take {ODD_COST} times the instructions for an odd row; it takes {cost / base:.2f} times "
                    f"for {dtype}: {cost} and {base}."
                )
    return faults


def worst(variants: list[Variant]) -> dict[str, int]:
    found: dict[str, int] = {}
    for variant in variants:
        for name, cost in (variant.hot or {}).items():
            found[name] = max(found.get(name, 0), cost)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.compile_triton",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", help="cuda:90, cuda:80, cuda:100, hip:gfx942, ...")
    parser.add_argument("dtypes", nargs="*", help=f"of {', '.join(DTYPES)}; default: all")
    arguments = parser.parse_args()
    backend, architecture = arguments.target.split(":")
    target = GPUTarget(
        backend, int(architecture) if architecture.isdigit() else architecture, 64 if backend == "hip" else 32
    )
    variants, faults = compiled(target, arguments.dtypes or list(DTYPES))
    for each in variants:
        hot = ", ".join(f"{name} {n}" for name, n in sorted((each.hot or {}).items()))
        print(
            f"{arguments.target} {each.dtype:9} {each.rows:5} {each.kernel:18} instructions {each.instructions:6} spills {each.spills:4} "
            f"registers {each.registers:3}  {hot}"
        )
    missing = set(KERNELS) - {variant.kernel for variant in variants}
    if missing:
        faults.append(f"every kernel must be compiled; {', '.join(sorted(missing))} was not reached by any call.")
    faults += faults_of(variants)
    print(f"{arguments.target}: {len(variants)} kernels, {len(faults)} faults")
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
