"""The Triton engine as it is compiled for a GPU, where there is none: compile_triton.py in a process of its own, because here
Triton is its interpreter. Of the targets, `make gpu-compile` does all; here sm_90 is compiled whole, and AMD's in one dtype.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fastdecode import dispatch
from tests import ROOT

pytestmark = pytest.mark.skipif("triton" not in dispatch.ENGINES, reason=dispatch.MISSING.get("triton", ""))


def compiled(*arguments: str, tree: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Kernels lie in build/triton by their contents: what was compiled there before is not compiled again."""
    environment = {
        **os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(ROOT / "build" / "triton"),
        "PYTHONPATH": os.pathsep.join((str(tree), str(ROOT))),
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "tests" / "support" / "compile_triton.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_kernel_compiles_once_without_a_spill(dtype):
    """All plans, even and odd rows, other batches, seeds and values; compile_triton.py says what counts as a fault."""
    run = compiled("cuda:90", dtype)
    assert run.returncode == 0, run.stderr[-3000:]
    assert re.search(r"^cuda:90: 15 kernels, 0 faults$", run.stdout, re.M), run.stdout


def test_another_vendors_gpu_compiles_too():
    run = compiled("hip:gfx942", "bfloat16")
    assert run.returncode == 0, run.stderr[-3000:]


# ---- faults that it must notice --------------------------------------------------------------------------------------


def test_a_type_error_in_a_kernel_is_noticed(tmp_path):
    """As a GPU would meet it; the interpreter never does: numpy adds an integer to a pointer and to a float alike."""
    shutil.copytree(ROOT / "fastdecode", tmp_path / "fastdecode", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    source = tmp_path / "fastdecode" / "engines" / "triton" / "measure.py"
    right = "tl.store(own_ptr + groups, tl.sum(w * y, 1), valid)"
    text = source.read_text()
    assert text.count(right) == 1
    source.write_text(text.replace(right, "tl.store(own_ptr + groups * 1.5, tl.sum(w * y, 1), valid)"))
    run = compiled("cuda:90", "float32", tree=tmp_path)
    assert run.returncode == 1 and "float32, even rows, truncate: CompilationError" in run.stderr, run.stderr[-3000:]


def test_what_counts_as_a_fault():
    """Of made-up kernels, one of each kind."""
    from tests.support.compile_triton import EVEN, ODD, Variant, faults_of

    even = Variant("measure_kernel", "float32", EVEN, ["B=1"], 1000, 0, 100, {"measure_kernel": 200})
    odd = replace(even, rows=ODD, spills=8, hot={"measure_kernel": 300})
    assert faults_of([even, odd]) == []
    (spill,) = faults_of([replace(even, spills=4), odd])
    assert "must keep its variables in registers" in spill and "spills 4 times for float32" in spill
    (again,) = faults_of([even, replace(even, cases=["B=2"]), odd])
    assert "compiled 1 times for float32 and even rows" in again and "got 2: B=1; B=2." in again
    (slow,) = faults_of([even, replace(odd, hot={"measure_kernel": 301})])
    assert "1.50 times for float32: 301 and 200" in slow
    (unseen,) = faults_of([replace(even, hot={}), odd])
    assert "no loop around a read of logits was found" in unseen


def test_a_kernel_that_another_checkout_compiled_has_its_lines_here():
    """Triton's cache goes by a kernel's text: where it was compiled may be gone."""
    import fastdecode
    from tests.support.compile_triton import _source

    package = Path(fastdecode.__file__).parent
    assert _source(Path("/gone/fastdecode/__init__.py")) == package / "__init__.py"
    with pytest.raises(FileNotFoundError, match="remove build/triton"):
        _source(Path("/gone/fastdecode/gone.py"))
