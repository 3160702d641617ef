"""Builds tests/fuzz with sanitizers and runs it: random plans x hostile rows x instruction sets, and many callers at once.

    python -m tests.support.fuzzed [--seconds 600] [--seed 1]      what `make fuzz` does

Of UndefinedBehaviorSanitizer the checks of null, object size and overflowing pointers are left out: they double the time of the
compiler, and AddressSanitizer sees what they would lead to.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests import ROOT
from tests.support.emulated import build

COMMON = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-trapping-math", "-ffp-contract=fast", "-pthread"]
MEMORY = [
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize=null,object-size,vptr,pointer-overflow",
    "-fno-sanitize-recover=all",
]
THREADS = ["-fsanitize=thread"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
AVX512 += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # of gcc's own header, see setup.py


def program(what: str) -> Path:
    """The fuzzer for "rows" (address and undefined behaviour, all instruction sets) or "threads" (one is enough)."""
    files: dict[str, list[str]] = {
        name: []
        for name in (
            "csrc/cpu/engine.cpp",
            "csrc/cpu/soft.cpp",
            "csrc/cpu/threads.cpp",
            "csrc/cpu/target_baseline.cpp",
            "tests/fuzz/fuzz.cpp",
        )
    }
    every = what == "rows" and platform.machine().lower() in ("x86_64", "amd64")
    if every:
        files |= {"csrc/cpu/target_avx2.cpp": AVX2, "csrc/cpu/target_avx512.cpp": AVX512}
    flags = [*COMMON, *(MEMORY if what == "rows" else THREADS), f"-DFD_X86={int(every)}"]
    return build(ROOT, flags, files, ["-pthread"], f"fuzz-{what}")


def run(what: str, seed: int, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run it for so long; its exit code is 0 if nothing was wrong, and the case can be found in what it says if not."""
    command = [str(program(what)), what, str(seed), str(seconds)]
    done = _run(command, seconds)
    if "unexpected memory mapping" in done.stderr and shutil.which("setarch"):  # an old ThreadSanitizer on a new kernel
        done = _run(["setarch", platform.machine(), "-R", *command], seconds)
    return done


def _run(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120 + 5 * seconds)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.fuzzed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="three quarters for rows, the rest for threads")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: another one each time")
    given = parser.parse_args()
    for what, share in (("rows", 0.75), ("threads", 0.25)):
        done = run(what, given.seed, share * given.seconds)
        print(f"{what}, seed {given.seed}: {done.stdout.strip()}", done.stderr.strip(), flush=True)
        if done.returncode:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
