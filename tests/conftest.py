"""The engines under test: every engine but the reference, and of the cpu engine every instruction set this machine runs.

A test that takes `engine` runs once for each, with all calls of fastdecode going to it. An engine that is not there skips its
tests, unless FASTDECODE_REQUIRE names it (the cpu engine always is): then they fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: then its engine runs on the CPU

from interpreted import quicken, share_of, shown

from fastdecode import dispatch

INTERPRETED = "triton" in dispatch.PREFERENCE["cpu"]
if INTERPRETED:
    quicken()


class EngineUnderTest(NamedTuple):
    name: str
    target: str | None  # an instruction set of the cpu engine

    def __str__(self) -> str:
        return f"{self.name}-{self.target}" if self.target else self.name

    @property
    def sees_all(self) -> bool:
        """False in Triton's interpreter: see interpreted.py."""
        return not (INTERPRETED and self.name == "triton")

    def few(self, things: Sequence, n: int, key: str = "") -> Sequence:
        """All of them; `n` for an engine that does not see all, others for another key."""
        return things if self.sees_all else share_of(things, n, key)


def engines() -> list[EngineUnderTest]:
    found = []
    for name in sorted((set(dispatch.ENGINES) | set(dispatch.MISSING) | dispatch.required()) - {"reference"}):
        targets = getattr(dispatch.ENGINES.get(name), "targets", lambda: [None])()
        found += [EngineUnderTest(name, target) for target in targets]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", engines(), ids=str, indirect=True, scope="module")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if INTERPRETED:
        hidden = [item for item in items if not shown(item)]
        config.hook.pytest_deselected(items=hidden)
        items[:] = [item for item in items if item not in hidden]


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[EngineUnderTest]:
    """All calls inside the test go to this engine."""
    wanted: EngineUnderTest = request.param
    if wanted.name not in dispatch.ENGINES:
        why = f"the engine {wanted.name!r} is not there: {dispatch.MISSING.get(wanted.name, 'nobody knows it')}"
        (pytest.fail if wanted.name in dispatch.required() else pytest.skip)(why)
    with dispatch.use(wanted.name), _target(wanted):
        yield wanted


class _target:
    """Run with this instruction set, and go back to the one before."""

    def __init__(self, wanted: EngineUnderTest):
        self.native = dispatch.ENGINES[wanted.name] if wanted.target else None
        self.wanted = wanted.target

    def __enter__(self) -> None:
        if self.native:
            self.before = self.native.build_info()["target"]
            self.native.use_target(self.wanted)

    def __exit__(self, *_: object) -> None:
        if self.native:
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
    import loops

    return {kind: loops.made(kind) for kind in loops.MODELS}


@pytest.fixture
def llama(models):
    return models["llama"]


@pytest.fixture
def prompts():
    return torch.tensor([[5, 9, 77, 130], [8, 2, 250, 4], [61, 61, 3, 299]])
