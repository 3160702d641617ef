"""Here the Triton engine alone is judged: its random words, its tiles and slices, and whether the conformance suite would notice
a fault in its search. How it compiles is judged by test_triton_compiled.py, what it computes by test_conformance.py.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

import fastdecode as fd
from fastdecode import dispatch, philox
from fastdecode.record import Draw, Wanted
from tests import ROOT
from tests.conftest import INTERPRETED, EngineUnderTest
from tests.engines.test_conformance import BIG, SMALL, Tally
from tests.support.cases import CHAINS, HOSTILE, INDISTINGUISHABLE, LAYOUTS, ROWS, normal, ordinary
from tests.support.interpreted import ONE_IN, PLANS, share_of
from tests.support.judge import same, verdict
from tests.support.tolerance import NOISE_OF_ENGINE

TRITON = EngineUnderTest("triton", None)
DEVICE = torch.device(TRITON.device or "cpu")  # the engine is called directly here: its tensors lie where it runs

pytestmark = pytest.mark.skipif("triton" not in dispatch.ENGINES, reason=dispatch.MISSING.get("triton", ""))


@pytest.fixture
def triton():
    with dispatch.use("triton"):
        yield dispatch.ENGINES["triton"]


def everything(x: torch.Tensor, plan: fd.Plan, **options) -> list[torch.Tensor]:
    s = fd.sample(
        x, plan, seed=5, num_samples=2, stats=True, top_logprobs=3, logprobs_of=x.new_zeros(len(x), 1).long(), **options
    )
    return [fd.truncate(x, plan), *(getattr(s, name) for name in type(s).__slots__)]


def check_same(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    assert all(same(one, other).all() for one, other in zip(a, b))


# ---- the interpreter's share of the suite ------------------------------------------------------------------------------


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU the engine sees the whole suite")
def test_the_interpreter_is_shown_everything_once():
    collect = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        ROOT / "tests" / "engines" / "test_conformance.py",
    ]
    listing = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shown: dict[str, list[str]] = {}
    for test, instance in re.findall(r"::(\w+)\[triton-?(.*)\]$", listing, re.MULTILINE):
        shown.setdefault(test, []).append(instance)
    plans = shown["test_hostile_rows"]
    assert {case.name for case in CHAINS} <= set(plans) and sorted(plans) == sorted(PLANS)
    assert all(any(plan.startswith(row.name) for plan in plans) for row in ROWS)
    assert {given.name for given in HOSTILE} <= {given.name for plan in plans for given in TRITON.few(SMALL, 1, plan)}
    assert len({given.name for plan in shown["test_large_rows"] for given in TRITON.few(BIG, 1, plan)}) >= 4
    halves = shown["test_half_precision_rows"]
    assert len(halves) > 12 and all(any(dtype in half for half in halves) for dtype in ("bfloat16", "float16"))
    assert len(shown["test_memory_layouts"]) == 3 * len(LAYOUTS)
    assert set(shown) == {test for test in re.findall(r"::(\w+)\[cpu-baseline", listing) if ONE_IN.get(test, 1)}


def test_a_share_is_a_share():
    assert share_of(range(10), 3, "a") != share_of(range(10), 3, "b")
    assert len(set(share_of(range(10), 3, "a"))) == 3 and share_of("xyz", 5, "a").__len__() == 3


# ---- random words ------------------------------------------------------------------------------------------------------


if "triton" in dispatch.ENGINES:
    import triton as compiler
    import triton.language as tl

    from fastdecode.engines.triton.draw import exponentials

    @compiler.jit
    def exponentials_kernel(out_ptr, first, seed_ptr, step_ptr, stream_ptr):
        lane = tl.arange(0, 256)
        seed, step, stream = tl.load(seed_ptr), tl.load(step_ptr), tl.load(stream_ptr)
        tl.store(out_ptr + lane, exponentials(seed, step, stream, first + lane))


def test_exponentials_are_those_of_the_stream(triton):
    """-log(v) at coordinates over their whole ranges; the published words of the generator are checked in test_philox.py."""
    for first, seed, step, stream in (
        (0, 0, 0, 0), (5, 12345, 7, 3), (2**31 - 300, -1, 2**32 - 1, 2**62 + 2**40 + 2**32), (1000, -(2**63), 2**31, -1),
    ):  # fmt: skip
        out = torch.empty(256, dtype=torch.float64, device=DEVICE)
        seeds, steps, streams = (torch.tensor([n]) for n in (seed, step, stream))
        exponentials_kernel[(1,)](out, first, *(t.to(DEVICE) for t in (seeds, steps, streams)))
        words = philox.words(first + torch.arange(256), seeds, steps, streams)
        v = ((0xFFFFFFFF - words).double() + 0.5) * 2.0**-32
        torch.testing.assert_close(out.cpu(), -v.log(), rtol=NOISE_OF_ENGINE, atol=NOISE_OF_ENGINE)


# ---- tiles, slices, places ---------------------------------------------------------------------------------------------

TWO_PLANS = (
    fd.plan(fd.temperature(1.3), fd.top_p(0.8)),
    fd.plan(fd.typical_p(0.7), fd.top_h(0.6), fd.top_n_sigma(2.0)),
)


def test_how_many_slices(triton):
    """The written rule: two programs for each processor where the rows allow it, never less than a tile of 4096 to one."""
    assert [
        triton.slices(b, v, 132) for b, v in ((1, 128256), (1, 1000), (8, 128256), (64, 128256), (512, 128256))
    ] == [32, 1, 32, 5, 1]


@pytest.mark.parametrize("plan", TWO_PLANS, ids=repr)
def test_neither_slices_nor_tiles_nor_neighbours_show(triton, plan, monkeypatch):
    """Bit for bit: the sums are taken in the same order whatever the launch."""
    x = ordinary(2, 2500, 4).to(DEVICE)
    expected = everything(x, plan)
    for count in (2, 3):
        monkeypatch.setattr(triton, "slices", lambda *_, count=count: count)
        check_same(everything(x, plan), expected)
    check_same([field[1:] for field in expected], everything(x[1:], plan, streams=1))
    wide = torch.cat([x, torch.full_like(x, math.nan)], 1)[:, :2500]  # another stride
    check_same(everything(wide, plan), expected)
    monkeypatch.setattr(triton, "_vector", lambda rows: 1)
    check_same(everything(x, plan), expected)
    if not INTERPRETED:
        return  # compiled kernels keep the sizes that they were compiled with
    for name, size in (("TILE", 2), ("HALF_TILE", 1), ("SPAN", 4)):
        for module in ("measure", "search", "narrow", "draw", "outputs", "launch"):
            monkeypatch.setattr(f"fastdecode.engines.triton.{module}.{name}", tl.constexpr(size), raising=False)
    check_same(everything(x, plan), expected)


def test_ids_outside_the_vocabulary_have_no_probability(triton):
    """On a GPU nobody looks at ids before the kernel does: that would be a synchronisation."""
    x = normal(2, 300, 1.0, 3).to(DEVICE)
    ids = torch.tensor([[-1, 0, 299, 300, 2**40]], device=DEVICE).expand(2, 5).contiguous()
    found = triton.sample(x, fd.plan().packed(x.device), Draw(0, 0, None, 1, 300), Wanted(logprobs_of=ids))[
        "logprobs_of"
    ]
    assert found.isinf().tolist() == [[True, False, False, True, True]] * 2


# ---- faults that the suite must notice ---------------------------------------------------------------------------------

FAULTS = (
    ("the last tile is left out", "search", "for start in range(0, n_listed, TILE):", "for start in range(0, n_listed - TILE, TILE):", "V=32000", "top_p(0.9)"),
    ("tiles overlap", "measure", "for start in range(0, n_listed, TILE):", "for start in range(0, n_listed, TILE // 2):", "V=32000", "top_k, top_h"),
    ("a group too few", "measure", "place < n, other=0), place < n", "place < n, other=0), place < n - 1", "peaked", "top_p(0.9)"),
    ("ties are parted", "search", "key[None, :] >= pivot[:, None]", "(key[None, :] > pivot[:, None]) | (lane[None, :] == place[:, None])", "integer ties", "top_k(50)"),
    ("the crossing group goes", "search", "met & (place < n), pivot, NO_KEY", "met & (place < n), pivot + 1, NO_KEY", "flat", "top_p(0.9)"),
    ("the group that overshoots stays", "narrow", "(stop != STOP_AFTER) & (key > NO_KEY), key + 1, key", "(stop != STOP_AFTER) & (key < NO_KEY), key + 1, key", "flat", "top_h(0.4)"),
    ("the slack is dropped", "search", "1.0 - SLACK, 1.0 + SLACK", "1.0, 1.0", "exact on paper", "top_p"),
    ("the slack of a floor is dropped", "narrow", "edge - SLACK", "edge + SLACK", "exact on paper", "min_p"),
    ("the highest id wins a tie", "draw", "tl.min(tl.min(tl.where(x == wanted, ids, LAST_KEY), 1), 0)", "tl.max(tl.max(tl.where(x == wanted, ids, -1), 1), 0)", "all equal", "greedy"),
    ("groups at the bound are passed over", "measure", 'other=-float("inf")) >= lo', 'other=-float("inf")) > lo', "V=32000", "top_k(50)"),
    ("groups share a stream with tokens", "draw", "stream | GROUP_STREAM", "stream | TOKEN_STREAM", "flat", "nothing"),
)  # fmt: skip


def check(given: str, plan: str) -> None:
    if given == "exact on paper":
        row = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]]).log()
        assert fd.truncate(row, fd.plan(getattr(fd, plan)(0.8 if plan == "top_p" else 0.6))).isfinite().sum() == 4
    else:
        tally = Tally()
        tally.check(verdict(given, plan), given not in INDISTINGUISHABLE)
        tally.finish(removes=False)


@pytest.mark.skipif(not INTERPRETED, reason="faults are planted in the interpreter")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f[0])
def test_the_suite_notices_a_fault(fault, tmp_path, monkeypatch):
    _, where, right, wrong, given, plan = fault
    with dispatch.use("triton"):
        check(given, plan)
    # A package beside the engine's own: what it imports from fastdecode is the same.
    package = "fastdecode.engines.faulty_triton"
    shutil.copytree(ROOT / "fastdecode" / "engines" / "triton", tmp_path, dirs_exist_ok=True)
    path = tmp_path / f"{where}.py"
    source = path.read_text()
    assert right in source, "the fault no longer fits the source"
    path.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location(
        package, tmp_path / "__init__.py", submodule_search_locations=[str(tmp_path)]
    )
    monkeypatch.setitem(sys.modules, package, importlib.util.module_from_spec(spec))
    try:
        faulty = importlib.import_module(f"{package}.launch")
    finally:
        for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
            del sys.modules[name]
    monkeypatch.setitem(dispatch.ENGINES, "triton", faulty)
    with dispatch.use("triton"), pytest.raises(AssertionError):
        check(given, plan)


# ---- where Triton is not there -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpret", ["0", "1"])
def test_without_triton_the_package_says_so(interpret):
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; torch.cuda.device_count = lambda: int(sys.argv[1])\n"
        "from fastdecode import dispatch\n"
        "assert 'triton' not in dispatch.ENGINES and dispatch.PREFERENCE['cpu'] == ('cpu', 'reference')\n"
        "print(dispatch.MISSING['triton'])"
    )
    for gpus in "01":
        run = subprocess.run(
            [sys.executable, "-c", code, gpus],
            env={**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        there = interpret == "1" or gpus == "1"
        assert run.stdout.startswith("Triton is not there" if there else "torch sees no GPU here")


def test_an_old_triton_is_refused(monkeypatch):
    """It could compile no kernel."""
    package = importlib.import_module("fastdecode.engines.triton")
    for version, fine in (("3.2.0", False), ("2.1.0", False), ("3.3.0", True), ("3.10.1+git12", True), ("4.0", True)):
        monkeypatch.setattr("triton.__version__", version)
        with (
            contextlib.nullcontext()
            if fine
            else pytest.raises(ImportError, match=f"3.3 or newer is needed; got {version}")
        ):
            importlib.reload(package)
