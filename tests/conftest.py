"""The engines under test: every engine but the reference, and of the cpu engine every instruction set this machine runs.

A test that takes `engine` runs once for each, with all calls of fastdecode going to it. An engine that is not there skips its
tests, unless FASTDECODE_REQUIRE names it (the cpu engine always is): then they fail.

Tests have their logits on the CPU. An engine of a GPU gets them moved there, with their strides, and its answers are moved back.
Where there is no GPU, the source of the CUDA engine runs all the same, by emulation (emulated.py).
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: then its engine runs on the CPU

from fastdecode import dispatch, philox
from fastdecode.record import Draw, Mixing, Wanted
from tests.support import emulated
from tests.support.interpreted import quicken, share_of, shown

# A dry run for a GPU (bench/gpu/stand_in.py) has something else by this name, which is no module.
INTERPRETED = "triton" in dispatch.PREFERENCE["cpu"] and inspect.ismodule(dispatch.ENGINES["triton"])
NEEDS_A_DEVICE = "gpu"  # the fixture's name and the marker's
if INTERPRETED:
    quicken()


class EngineUnderTest(NamedTuple):
    name: str
    target: str | None = None  # an instruction set of the cpu engine, or blocks of the emulated cuda engine

    def __str__(self) -> str:
        return f"{self.name}-{self.target}" if self.target else self.name

    @property
    def sees_all(self) -> bool:
        """False in Triton's interpreter: see interpreted.py."""
        return not (INTERPRETED and self.name == "triton")

    def few(self, things: Sequence, n: int, key: str = "") -> Sequence:
        """All of them; `n` for an engine that does not see all, others for another key."""
        return things if self.sees_all else share_of(things, n, key)

    @property
    def device(self) -> str | None:
        """Where its logits lie, if not on the CPU."""
        on_gpu = self.name in dispatch.PREFERENCE["cuda"] and torch.cuda.is_available()
        return "cuda" if on_gpu and self.target is None else None


# Emulation is slow, so it runs the suite on clusters of this many blocks only, and test_cuda.py shows that all others answer bit for
# bit alike; of the tests in these files it runs every so-manieth plan: they compare the engine with itself on 64 rows each.
EMULATED_RANKS = 2
EMULATED_EVERY = {"test_invariance.py": 6, "test_draw.py": 3}


def engines() -> list[EngineUnderTest]:
    found = []
    for name in sorted((set(dispatch.ENGINES) | set(dispatch.MISSING) | dispatch.required()) - {"reference"}):
        if name == "cuda" and name not in dispatch.ENGINES and name not in dispatch.required():
            targets: list[str | None] = [f"emulated-c{EMULATED_RANKS}"]
        else:
            targets = [*dispatch.ENGINES[name].targets()] if name in dispatch.ENGINES else [None]
        found += [EngineUnderTest(name, target) for target in targets]
    return found


def pytest_configure(config: pytest.Config) -> None:
    """`FASTDECODE_REQUIRE=cuda pytest -m gpu` where nothing could run: one sentence, before any test is collected."""
    config.addinivalue_line("markers", f"{NEEDS_A_DEVICE}: needs a GPU and nothing else")
    asked = re.fullmatch(rf"\s*{NEEDS_A_DEVICE}\b.*", config.getoption("markexpr", ""))
    missing = sorted(dispatch.required() & {"cuda", "triton"} - set(dispatch.ENGINES))
    if asked and missing:
        why = dispatch.MISSING.get(missing[0], "nobody knows it")
        pytest.exit(f"pytest -m gpu must find the engine {missing[0]!r} here, and it is not there: {why}.", 4)


@pytest.fixture
def gpu() -> torch.device:
    """The device of tests that need one and nothing else; they carry the marker of the same name."""
    if "cuda" not in dispatch.ENGINES:
        (pytest.fail if "cuda" in dispatch.required() else pytest.skip)(dispatch.MISSING["cuda"])
    return torch.device("cuda", torch.cuda.current_device())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", engines(), ids=str, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, left_out, seen = [], [], dict.fromkeys(EMULATED_EVERY, 0)
    for item in items:
        if INTERPRETED and not shown(item):
            left_out.append(item)
            continue
        callspec = getattr(item, "callspec", None)
        engine = callspec.params.get("engine") if callspec else None
        if NEEDS_A_DEVICE in getattr(item, "fixturenames", ()) or (engine and engine.device):
            item.add_marker(NEEDS_A_DEVICE)
        if (
            engine
            and (engine.target or "").startswith("emulated")
            and item.path.name in seen
            and len(callspec.params) > 1
        ):
            seen[item.path.name] += 1
            if seen[item.path.name] % EMULATED_EVERY[item.path.name] != 1:
                left_out.append(item)
                continue
        kept.append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[EngineUnderTest]:
    """All calls inside the test go to this engine, and none of another test, which may want the usual one."""
    wanted: EngineUnderTest = request.param
    with contextlib.ExitStack() as stack:
        if wanted.target and wanted.target.startswith("emulated-c"):
            stack.enter_context(stand_in("cuda", emulated.Engine(int(wanted.target.removeprefix("emulated-c")))))
        elif wanted.name not in dispatch.ENGINES:
            why = f"the engine {wanted.name!r} is not there: {dispatch.MISSING.get(wanted.name, 'nobody knows it')}"
            (pytest.fail if wanted.name in dispatch.required() else pytest.skip)(why)
        elif wanted.device:
            stack.enter_context(stand_in(wanted.name, OnDevice(dispatch.ENGINES[wanted.name], wanted.device)))
        elif wanted.target:
            stack.enter_context(_target(wanted))
        stack.enter_context(dispatch.use(wanted.name))
        yield wanted


@contextlib.contextmanager
def stand_in(name: str, engine: Any) -> Iterator[None]:
    """`engine` answers by this name, for logits on the CPU."""
    engines, preference = dict(dispatch.ENGINES), dict(dispatch.PREFERENCE)
    dispatch.ENGINES[name] = engine
    dispatch.PREFERENCE["cpu"] = (*preference["cpu"], name)
    try:
        yield
    finally:
        for now, before in ((dispatch.ENGINES, engines), (dispatch.PREFERENCE, preference)):
            now.clear()
            now.update(before)  # type: ignore[call-overload]


class OnDevice:
    """An engine of another device, for logits on the CPU."""

    def __init__(self, engine: dispatch.Engine, device: str):
        self.engine, self.device = engine, device

    def truncate(
        self, logits: torch.Tensor, cuts: torch.Tensor, out: torch.Tensor, filter_value: float, vocab_limit: int
    ) -> None:
        x = self._moved(logits)
        in_place = out.data_ptr() == logits.data_ptr() and out.stride() == logits.stride()
        target = x if in_place else self._moved(out)
        self.engine.truncate(x, cuts.to(self.device), target, filter_value, vocab_limit)
        # The whole storage comes back, so that a write between the rows shows.
        storage, back = _storage(out), _storage(target).cpu()
        storage.copy_(back)

    def sample(self, logits: torch.Tensor, cuts: torch.Tensor, draw: Draw, wanted: Wanted) -> dict[str, torch.Tensor]:
        return self._sample(self.engine.sample, logits, cuts, draw, wanted)

    def sample_temperatures(
        self, logits: torch.Tensor, cuts: torch.Tensor, draw: Draw, wanted: Wanted
    ) -> dict[str, torch.Tensor]:
        return self._sample(self.engine.sample_temperatures, logits, cuts, draw, wanted)

    def _sample(
        self, call: Any, logits: torch.Tensor, cuts: torch.Tensor, draw: Draw, wanted: Wanted
    ) -> dict[str, torch.Tensor]:
        def moved(x: Any) -> Any:
            return x.to(self.device) if isinstance(x, torch.Tensor) else x

        draw = Draw(
            moved(draw.seed), moved(draw.step), moved(draw.streams), draw.num_samples, draw.vocab_limit, draw.flat
        )
        wanted = Wanted(wanted.stats, wanted.top_logprobs, moved(wanted.logprobs_of))
        found = call(self._moved(logits), cuts.to(self.device), draw, wanted)
        return {name: value.cpu() for name, value in found.items()}

    def soften(
        self,
        logits: torch.Tensor,
        cuts: torch.Tensor,
        candidates: torch.Tensor,
        draw: Draw,
        mixing: Mixing,
        found: dict,
    ):
        def moved(x: Any) -> Any:
            return x.to(self.device) if isinstance(x, torch.Tensor) else x

        draw = Draw(moved(draw.seed), moved(draw.step), moved(draw.streams), draw.num_samples, draw.vocab_limit)
        mixing = Mixing(
            mixing.noise, mixing.strength, moved(mixing.tau), moved(mixing.soft_rows), mixing.straight_through
        )
        there = {name: moved(value) for name, value in found.items()}
        made = self.engine.soften(
            self._moved(logits), cuts.to(self.device), candidates.to(self.device), draw, mixing, there
        )
        return {name: value.cpu() for name, value in made.items()}

    def embed(self, ids: torch.Tensor, weights: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.engine.embed(ids.to(self.device), weights.to(self.device), self._moved(table)).cpu()

    def uniforms(
        self, use: int, ids: torch.Tensor, seed: torch.Tensor, step: torch.Tensor, streams: torch.Tensor
    ) -> torch.Tensor:
        return philox.uniforms(use, ids, seed, step, streams)

    def targets(self) -> list[None]:
        return [None]

    def _moved(self, x: torch.Tensor) -> torch.Tensor:
        """At the same place of a storage of the same size."""
        return _storage(x).to(self.device).as_strided(x.shape, x.stride(), x.storage_offset())


def _storage(x: torch.Tensor) -> torch.Tensor:
    size = x.untyped_storage().nbytes() // x.element_size()
    return x.as_strided((size,), (1,), 0)


class _target:
    """Run with this instruction set, and go back to the one before."""

    def __init__(self, wanted: EngineUnderTest):
        self.native: Any = dispatch.ENGINES[wanted.name]
        self.wanted = wanted.target

    def __enter__(self) -> None:
        self.before = self.native.build_info()["target"]
        self.native.use_target(self.wanted)

    def __exit__(self, *_: object) -> None:
        self.native.use_target(self.before)


@pytest.fixture
def reference() -> Iterator[None]:
    """All calls inside the test go to the reference."""
    with dispatch.use("reference"):
        yield


@pytest.fixture
def threads() -> Iterator[None]:
    """The test may call torch.set_num_threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ---- what the tests of fastdecode.hf share ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_thread():
    """Threads waiting for each other take most of the time of a tiny model on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def models():
    from tests.support import loops

    return {kind: loops.made(kind) for kind in loops.MODELS}


@pytest.fixture
def llama(models):
    return models["llama"]


@pytest.fixture
def prompts():
    return torch.tensor([[5, 9, 77, 130], [8, 2, 250, 4], [61, 61, 3, 299]])
