"""The pages of this repository read one model, some of them in several places."""

from __future__ import annotations

import functools
import socket

import pytest


@pytest.fixture(scope="session")
def model_read_once():
    """Reading it takes half a minute, so each process does it once; and without a network, as the pages promise."""
    transformers = pytest.importorskip("transformers")

    def offline(read):
        @functools.cache
        def reads(*given, **options):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(socket.socket, "connect", None)  # what asks the network would raise
                return read(*given, **options)

        return reads

    with pytest.MonkeyPatch.context() as patch:
        for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
            patch.setattr(kind, "from_pretrained", offline(kind.from_pretrained))
        yield
