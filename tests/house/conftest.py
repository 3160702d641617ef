"""The pages of this repository read one model, some of them in several places."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def readers() -> dict[type, Callable[..., Any]]:
    """Reading the model takes half a minute, so each process does it once; and without a network, as the pages promise."""
    transformers = pytest.importorskip("transformers")

    def offline(read: Callable[..., Any]) -> Callable[..., Any]:
        @functools.cache
        def reads(*given: Any, **options: Any) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(socket.socket, "connect", None)  # what asks the network would raise
                return read(*given, **options)

        return reads

    kinds = (transformers.AutoModelForCausalLM, transformers.AutoTokenizer)
    return {kind: offline(kind.from_pretrained) for kind in kinds}


@pytest.fixture
def model_read_once(readers: dict[type, Callable[..., Any]], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For one test: the tests of other files read models of their own from the same places."""
    for kind, read in readers.items():
        monkeypatch.setattr(kind, "from_pretrained", read)
    yield
