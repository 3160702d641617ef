"""What Triton's interpreter is shown of the suite. It runs a kernel's operations one by one in numpy: a row of 1000 tokens takes a
quarter of a second, so that there, and only there, the triton engine sees a share of each test, chosen by the rules below.
tests/engines/test_triton.py checks that nothing goes unseen: every rule, chain, hostile input, layout and dtype.
"""

from __future__ import annotations

import collections
import functools
import re
import zlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TypeVar

import pytest

from tests.support.cases import CHAINS, SINGLE

T = TypeVar("T")


# One instance in so many of a parametrised test; 0: none, because what it looks at is the same for every engine, or needs more rows
# or draws than can be waited for. Tests that are not named here run as they are.
ONE_IN = {
    "test_half_precision_rows": 5, "test_out": 3, "test_vocab_limit": 6, "test_large_rows": 2, "test_real_rows": 3,
    "test_a_number_is_the_same_coordinate_as_a_tensor_of_it": 0, "test_the_first_samples_do_not_depend_on_how_many_are_drawn": 0,
    "test_no_seed_follows_torch": 0, "test_out_leaves_what_lies_between_its_rows": 0,
    "test_many_draws_are_those_of_the_reference": 0, "test_the_engine_draws_the_same_tokens": 0, "test_what_the_engine_never_draws": 0,
    "test_a_row_does_not_see_its_batch": 0, "test_a_row_does_not_see_where_it_lies": 0, "test_a_row_does_not_see_its_type": 0,
    "test_threads": 0, "test_threads_on_real_rows": 0, "test_each_row_has_coordinates_of_its_own": 0, "test_every_rule_takes_a_seed": 0,
    "test_opcheck": 0, "test_compile": 0, "test_gradient": 0, "test_shapes_and_types_of_a_sample": 0,
    "test_check_names_the_rows": 0, "test_numpy": 0, "test_numpy_sample": 0, "test_the_logits_are_left_alone": 0,
    "test_no_answer_depends_on_torch_s_defaults": 2,  # one other dtype and another device
    "test_every_kind_and_width_on_hostile_rows": 3, "test_without_gradients_the_engine_mixes_and_with_them_torch_does": 2,
    "test_lists_and_arrays_of_coordinates": 0,
    "test_greedy_is_the_largest_logit_and_so_is_top_k_of_one": 0, "test_per_row_plans_are_the_plans_of_the_rows": 0,
}  # fmt: skip

NEVER_SHOWN = ("V=257", "B=0")  # 64 rows, and none, which test_ops.py looks at


# Of one rule alone, the plan that holds all its values, one in each row, stands for all of them.
PLANS = [case.name for case in SINGLE if re.search(r"by row|keeping|\(\)", case.name)] + [case.name for case in CHAINS]


def shown(item: pytest.Item) -> bool:
    """Does this test run?"""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if getattr(parameters.get("engine"), "name", "") != "triton":
        return True
    if item.originalname == "test_hostile_rows":
        return parameters["case"].name in PLANS
    one_in = ONE_IN.get(item.originalname, 1)
    return bool(one_in) and _place(item) % one_in == 0


@functools.cache
def _places() -> collections.Counter:
    return collections.Counter()


def _place(item: pytest.Item) -> int:
    """How many instances of this test came before."""
    _places()[item.originalname] += 1
    return _places()[item.originalname] - 1


def share_of(things: Sequence[T], n: int, key: str) -> list[T]:
    """`n` of the things, others for another key."""
    things = [thing for thing in things if not any(name in str(thing) for name in NEVER_SHOWN)]
    first = PLANS.index(key) if key in PLANS else zlib.crc32(key.encode())
    return [things[(first + i * (len(things) // n + 1)) % len(things)] for i in range(min(n, len(things)))]


def quicken() -> None:
    """The interpreter replaces Triton's language by its own at every call of every function, which is half of its time. Once
    is enough in a process that compiles nothing."""
    from triton import language
    from triton.runtime import interpreter

    if hasattr(interpreter, "_patch_lang"):
        interpreter._patch_lang(SimpleNamespace(__globals__={"tl": language, "core": language.core}))
        interpreter._patch_lang = lambda _: SimpleNamespace(restore=lambda: None)
