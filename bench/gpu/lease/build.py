"""The compiled extension: one that was carried here is taken if it was compiled from just this source, for this Python and this device;
else it is compiled, in place, where git ignores it. No pip, no network.
"""

from __future__ import annotations

import importlib.machinery
import os
import runpy
import subprocess
import sys
from pathlib import Path

from ... import ROOT

# What an extension says about itself: loaded in a process of its own, so that one which cannot be loaded harms nobody.
ASK = "from fastdecode import _native as n; print(n.cuda_built_for() if hasattr(n, 'cuda_built_for') else 'no CUDA')"
CAPABILITY = "import torch; print(*torch.cuda.get_device_capability(), sep='.')"


def asked(code: str) -> str | None:
    """What a line of Python prints; None if it fails."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def carried() -> Path | None:
    """The file that `import fastdecode._native` takes."""
    places = (ROOT / "fastdecode" / f"_native{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in places if path.exists()), None)


def objection(extension: Path | None, capability: str | None) -> str | None:
    """Why it must be compiled, if it must. `capability`: of the device, such as 9.0; None: the CPU engine is enough."""
    if extension is None:
        return "there is none"
    if not runpy.run_path(str(ROOT / "csrc" / "source_key.py"))["holds_key"](extension):
        return f"{extension.name} was compiled from another source"
    built_for = asked(ASK)
    if built_for is None:
        return f"{extension.name} cannot be loaded here"
    if capability and capability not in built_for:
        return f"{extension.name} was compiled for {built_for}, and this device is {capability}"
    return None


def main() -> int:
    capability = None if os.environ.get("FASTDECODE_GPU_DRY") == "1" else asked(CAPABILITY)
    why = objection(carried(), capability)
    if why is None:
        print("the carried extension is taken")
        return 0
    print(f"compiled here: {why}", flush=True)
    environment = dict(os.environ)
    if capability:
        environment["TORCH_CUDA_ARCH_LIST"] = (
            capability  # without nvcc the CPU engine is built, which judges Triton's answers
        )
    done = subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=ROOT, env=environment)
    still = objection(carried(), capability) if done.returncode == 0 else "the compiler failed"
    print(f"compiled here: {why}" if still is None else f"no extension for this machine: {still}")
    return int(still is not None)


if __name__ == "__main__":
    sys.exit(main())
