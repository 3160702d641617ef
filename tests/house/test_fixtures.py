"""A test runs with the engine that it asks for, and without one with the engine that users get."""

from __future__ import annotations

import torch

from fastdecode import dispatch
from fastdecode.engines import cpu

CPU = torch.device("cpu")
USUAL = (dispatch.engine_for(CPU), cpu.build_info()["target"])  # read before any fixture is active


def in_use() -> tuple:
    return dispatch.engine_for(CPU), cpu.build_info()["target"]


def test_the_engine_that_is_asked_for_answers(engine):
    assert dispatch.engine_for(CPU) is dispatch.ENGINES[engine.name]
    assert engine.name != "cpu" or in_use()[1] == engine.target


def test_the_usual_engine_answers_where_none_is_asked_for():
    """Also right after the test above, in the same file."""
    assert in_use() == USUAL
