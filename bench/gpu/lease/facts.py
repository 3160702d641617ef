"""What the machine is, and what nothing on it can beat: bandwidths, the time of a launch, of a cluster's barrier."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .. import clock, stand_in
from ..lines import append

PACKAGES = ("torch", "triton", "transformers", "numpy", "scipy", "flashinfer-python", "vllm", "pytest", "pytest-xdist")
QUERY = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
LAUNCHES = 200
CLUSTER, THREADS, BARRIERS = 8, 256, 1000

# As csrc/cuda/platform.cuh waits for a cluster. The loop without barriers is the time to subtract.
BARRIER = """
extern "C" __global__ void __cluster_dims__(8, 1, 1) barriers(int n) {
  for (int i = 0; i < n; ++i)
    asm volatile("barrier.cluster.arrive.release.aligned;\\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
"""


def software() -> dict:
    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    return {"python": platform.python_version(), "cpus": os.cpu_count(), **{name: installed(name) for name in PACKAGES}}


def device() -> dict:
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name, "capability": list(torch.cuda.get_device_capability()), "cuda": torch.version.cuda,
        "multiprocessors": properties.multi_processor_count, "l2_bytes": properties.L2_cache_size, "memory_bytes": properties.total_memory,
    }  # fmt: skip


def driver() -> dict:
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    return {"nvidia_smi": dict(zip(QUERY.split(","), map(str.strip, said.splitlines()[0].split(","))))}


def bandwidths() -> dict:
    """GB/s of a large copy, counted both ways, and of reading: a maximum over all of it."""
    size = min(2**31, torch.cuda.get_device_properties(0).total_memory // 16)
    x = torch.empty(size // 4, dtype=torch.int32, device="cuda").random_()
    read = clock.microseconds(torch.max, [x])
    return {
        "copy_GB_s": round(clock.copy_bandwidth(size) / 1e3),
        "read_GB_s": round(size / read / 1e3),
        "of_bytes": size,
    }


def launches() -> dict:
    """Microseconds a kernel that does nothing, from a graph and one by one from Python."""
    x = [torch.zeros(1, device="cuda")] * LAUNCHES
    found = {
        f"launch_us_{name}": clock.microseconds(torch.Tensor.zero_, x, graph)
        for name, graph in (("graph", True), ("python", False))
    }
    return {name: round(us, 3) for name, us in found.items()}


def barrier() -> dict:
    kernel = torch.cuda._compile_kernel(BARRIER, "barriers")

    def wait(n: int) -> Callable[[torch.Tensor], None]:
        return lambda _: kernel(grid=(CLUSTER, 1, 1), block=(THREADS, 1, 1), args=[n])

    with_them, without = (clock.microseconds(wait(n), [torch.zeros(1)], graph=False) for n in (BARRIERS, 0))
    return {"cluster_barrier_us": round((with_them - without) / BARRIERS, 4), "blocks": CLUSTER, "threads": THREADS}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.lease.facts", description="What the machine is.")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    dry = stand_in.dry_run()
    append(options.out, software() | ({"dry_run": True} if dry else {}))
    if not torch.cuda.is_available():
        print("torch sees no CUDA device")
        return 1
    for fact in (device, driver, bandwidths, launches, barrier):
        try:
            append(options.out, fact())
        except Exception as error:  # one unknown number is no reason to miss the others
            append(options.out, {fact.__name__: f"unknown: {type(error).__name__}: {str(error)[:200]}"})
    print(torch.cuda.get_device_properties(0).name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
