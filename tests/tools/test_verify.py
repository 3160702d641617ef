"""`python -m fastdecode verify` must pass what is right and catch what is not: here with faults planted in engines and in peers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import fastdecode as fd
from fastdecode import dispatch, philox, verify
from fastdecode.cli import command as cli
from fastdecode.engines import reference
from fastdecode.verify import draws, exact, samplers, statistics
from tests.conftest import stand_in
from tests.support.tolerance import ERRORS_FAIR

CPU = torch.device("cpu")
DRAWN = [f"draws, {kind} row" for kind in draws.rows(16)]
TAIL, PAIRS, NEVER = "draws, thin tail", "draws are independent", "-inf is never drawn"


def one_by_one(asked, answer):
    return [(check.name, answer(check, lambda share: None), 0.0) for check in asked]


def wrong(sampler) -> set[str]:
    """The checks that a sampler fails."""
    return {name for name, finding, _ in verify.ask(sampler, True, 1, one_by_one) if finding.right is False}


# ---- engines -------------------------------------------------------------------------------------------------------


def cpu_sample(logits, cuts, draw, wanted):
    return dispatch.ENGINES["cpu"].sample(logits, cuts, draw, wanted)


class Faulty:
    """The cpu engine with another `sample`."""

    def __init__(self, sample: Callable):
        self.sample = sample

    def truncate(self, *arguments):
        dispatch.ENGINES["cpu"].truncate(*arguments)


def lowest_fifth_dropped(logits, cuts, draw, wanted):
    x = logits.float().clone()
    floor = x.nan_to_num(neginf=1e9).quantile(0.2, dim=1, keepdim=True) if x.shape[1] < 2**17 else None
    floor = x.sort(1).values[:, x.shape[1] // 5, None] if floor is None else floor
    return cpu_sample(torch.where(x < floor, -math.inf, x), cuts, draw, wanted)


def three_per_cent_uniform(logits, cuts, draw, wanted):
    found = cpu_sample(logits, cuts, draw, wanted)
    dice = np.random.default_rng(int(torch.as_tensor(draw.seed).flatten()[0]) % 2**32)
    mixed = torch.from_numpy(dice.random(tuple(found["tokens"].shape)) < 0.03) & (found["tokens"] >= 0)
    anything = torch.from_numpy(dice.integers(0, draw.vocab_limit, tuple(found["tokens"].shape)))
    return found | {"tokens": torch.where(mixed, anything, found["tokens"])}


def five_per_cent_hotter(logits, cuts, draw, wanted):
    return cpu_sample(logits.float() / 1.05, cuts, draw, wanted)


def first_seed_for_all(logits, cuts, draw, wanted):
    seed = draw.seed[0].expand(len(logits)) if isinstance(draw.seed, torch.Tensor) else draw.seed
    draw = type(draw)(seed, draw.step, draw.streams, draw.num_samples, draw.vocab_limit, draw.flat)
    return cpu_sample(logits, cuts, draw, wanted)


def ties_by_position(logits, cuts, draw, wanted):
    """The lowest id of those that tie with the token drawn."""
    found = cpu_sample(logits, cuts, draw, wanted)
    tokens = found["tokens"].view(len(logits), -1).clone()
    for row, drawn in zip(logits, tokens):
        _, levels = row.unique(return_inverse=True)
        first = torch.full((int(levels.max()) + 1,), len(row)).scatter_reduce(0, levels, torch.arange(len(row)), "amin")
        drawn.copy_(torch.where(drawn >= 0, first[levels[drawn.clamp(min=0)]], -1))
    return found | {"tokens": tokens.view(found["tokens"].shape)}


FAULTS = {
    lowest_fifth_dropped: set(DRAWN[:1]),
    three_per_cent_uniform: {*DRAWN[1:], NEVER},
    five_per_cent_hotter: set(DRAWN[1:]),
    first_seed_for_all: {"every row has its own seed", PAIRS},
    ties_by_position: {DRAWN[2]},
}


def judged(engine) -> set[str]:
    with stand_in("planted", engine):
        return wrong(samplers.Engine("planted", CPU))


@pytest.fixture(scope="module")
def single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_in_an_engine_is_caught(fault, monkeypatch, single_thread):
    monkeypatch.setattr(samplers, "QUICK", samplers.Effort(32768, 2**15, 2**12, 2**13, 10**5, 4096, 1))
    caught = judged(Faulty(fault))
    assert caught >= FAULTS[fault], caught


def test_noise_of_24_bits_in_an_engine_is_caught(monkeypatch, single_thread):
    """In the reference: what the check compares with must be right all the same."""
    right, coarse = philox.words, False

    def words(*coordinates):
        found = right(*coordinates)
        return (found >> 8 << 8) + 128 if coarse else found

    def sample(logits, cuts, draw, wanted):
        nonlocal coarse
        coarse = True
        try:
            return reference.sample(logits, cuts, draw, wanted)
        finally:
            coarse = False

    monkeypatch.setattr(philox, "words", words)
    monkeypatch.setattr(samplers, "QUICK", samplers.SLOW_QUICK)
    assert "noise at its quantiles" in judged(Faulty(sample))


def test_one_token_too_many_in_a_mask_is_caught(monkeypatch, single_thread):
    def truncate(logits, cuts, out, filter_value, vocab_limit):
        dispatch.ENGINES["cpu"].truncate(logits, cuts, out, filter_value, vocab_limit)
        gone = (~(out[-1] > -math.inf)).nonzero()
        if len(gone):
            out[-1, gone[0]] = 0.0

    engine = Faulty(cpu_sample)
    engine.truncate = truncate
    monkeypatch.setattr(samplers, "QUICK", samplers.SLOW_QUICK)
    assert "masks against float64" in judged(engine)


def test_a_right_engine_passes(engine, single_thread, monkeypatch):
    """Where every token costs milliseconds, the statistics are left to the engines that are there to be used."""
    emulated = (engine.target or "").startswith("emulated")
    if emulated or not engine.sees_all:
        monkeypatch.setattr(draws, "checks", lambda *_: iter(()))
        for name in ("QUICK", "SLOW_QUICK"):
            monkeypatch.setattr(samplers, name, samplers.Effort(512, 0, 0, 0, 0, 0, 1))
    if not engine.sees_all:
        every = exact.checks
        monkeypatch.setattr(
            exact, "checks", lambda *given: (check for check in every(*given) if "flagged" in check.name)
        )
    found = verify.ask(samplers.Engine(engine.name, CPU), True, 1, one_by_one)
    assert not [(name, finding.seen) for name, finding, _ in found if finding.right is False]
    assert sum(finding.right is True for _, finding, _ in found) == (
        1 if not engine.sees_all else 6 if emulated else 13
    )


def test_the_reference_passes(single_thread):
    assert not wrong(samplers.Engine("reference", CPU))


# ---- peers ---------------------------------------------------------------------------------------------------------


def gumbel(logits: torch.Tensor, seed: int, same: bool = False) -> torch.Tensor:
    """A sampler as people write it, with noise in double."""
    dice = np.random.default_rng(seed)
    v = torch.from_numpy(dice.random((1 if same else len(logits), logits.shape[1])))
    return (logits - (-v.log()).log()).argmax(1)


def multinomial(logits: torch.Tensor, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.multinomial(logits.softmax(1), 1)


def a_fifth_dropped(logits, seed):
    floor = logits.sort(1).values[:, logits.shape[1] // 5, None]
    return gumbel(torch.where(logits < floor, -math.inf, logits), seed)


def uniform_mixed_in(logits, seed):
    dice = np.random.default_rng(seed + 2**32)
    mixed = torch.from_numpy(dice.random(len(logits)) < 0.03)
    return torch.where(mixed, torch.from_numpy(dice.integers(0, logits.shape[1], len(logits))), gumbel(logits, seed))


def hotter(logits, seed):
    return gumbel(logits / 1.05, seed)


def one_seed_for_all(logits, seed):
    return gumbel(logits, seed, same=True)


def ties_to_the_first(logits, seed):
    return (logits == logits.gather(1, gumbel(logits, seed)[:, None])).int().argmax(1)


def masked_drawn(logits, seed):
    """A uniform of exactly 1, once in 2^16 rows: its noise is +inf, and -inf + inf is NaN, which argmax prefers."""
    dice = np.random.default_rng(seed)
    unlucky = torch.from_numpy(dice.random(len(logits)) < 2**-16)
    return torch.where(unlucky, 0, gumbel(logits, seed))


PEERS = {
    a_fifth_dropped: set(DRAWN[:1]),
    uniform_mixed_in: {DRAWN[1], NEVER},
    hotter: {DRAWN[1], DRAWN[3]},
    one_seed_for_all: {*DRAWN, PAIRS},
    ties_to_the_first: {DRAWN[2]},
    masked_drawn: {NEVER},
}


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.__name__)
def test_a_fault_in_a_peer_is_caught(peer, monkeypatch, single_thread):
    monkeypatch.setattr(samplers, "PEER_QUICK", samplers.Effort(1024, 2**13, 0, 2**13, 2**19, 16))
    assert wrong(samplers.Peer(peer, CPU)) >= PEERS[peer]


@pytest.mark.parametrize("peer", [gumbel, multinomial], ids=lambda peer: peer.__name__)
def test_a_right_peer_passes(peer, monkeypatch, single_thread):
    monkeypatch.setattr(samplers, "PEER_QUICK", samplers.Effort(4096, 2**12, 0, 2**13, 2**17, 16))
    assert not wrong(samplers.Peer(peer, CPU))


def two_levels(logits: torch.Tensor, seed: int, bits: int) -> torch.Tensor:
    """Gumbel draws with noise of so many bits from rows that all hold one token above equal ones: the largest noise of the n equal
    ones is that of v^(1/n)."""
    dice = np.random.default_rng(seed)
    head, rest, top = int(logits[0].argmax()), float(logits[0].min()), float(logits[0].max())
    v = dice.random((2, len(logits))) ** np.array([[1.0], [1.0 / (logits.shape[1] - 1)]])
    v = torch.from_numpy((np.floor(v * 2.0**bits) + 0.0) * 2.0**-bits)
    noise = -(-v.log()).log()
    other = torch.from_numpy(dice.integers(1, logits.shape[1], len(logits)))
    return torch.where(top + noise[0] > rest + noise[1], head, (head + other) % logits.shape[1])


@pytest.mark.parametrize("bits, right", [(53, True), (24, False)])
def test_24_bits_are_too_few_for_the_tail(bits, right):
    peer = samplers.Peer(lambda logits, seed: two_levels(logits, seed, bits), CPU)
    found = draws.tail(peer, samplers.PEER.tail_draws, 3, lambda share: None)
    assert found.right is right, found


@pytest.mark.parametrize("answer", [
    lambda logits, seed: torch.zeros(len(logits)),
    lambda logits, seed: torch.zeros(3, dtype=torch.int64),
    lambda logits, seed: torch.full((len(logits),), logits.shape[1]),
    lambda logits, seed: 1 / 0,
], ids=["floats", "another shape", "no id", "raises"])  # fmt: skip
def test_a_peer_that_does_not_answer_with_tokens_is_wrong(answer):
    peer = samplers.Peer(answer, CPU)
    found = verify.ask(peer, True, 1, one_by_one)
    assert all(finding.right is False for name, finding, _ in found if name != TAIL)


# ---- the statistics -------------------------------------------------------------------------------------------------


def test_what_a_g_test_would_find_is_found_about_so_often():
    """A thousand draws of a distribution at the size where the power is said to be POWER, and of one without fault."""
    p = np.full(20, 0.05)
    into = statistics.bins(p, np.arange(20), 20_000)
    tilt = np.linspace(-1, 1, 20)
    size = statistics.smallest(lambda s: p * (1 + s * tilt) / (1 + s * tilt).mean() / 20 / p.mean() * 1, [into], 20_000)
    dice = np.random.default_rng(3)
    q = p * (1 + size * tilt)
    found = [
        statistics.g_test(dice.multinomial(20_000, q / q.sum()), into.mass) < statistics.LEVEL for _ in range(1000)
    ]
    weaker = p * (1 + size / 2 * tilt)
    missed = [statistics.g_test(dice.multinomial(20_000, weaker), into.mass) < statistics.LEVEL for _ in range(200)]
    expected, spread = 1000 * statistics.POWER, (1000 * statistics.POWER * (1 - statistics.POWER)) ** 0.5
    assert abs(sum(found) - expected) < ERRORS_FAIR * spread + 1 and sum(missed) < 50
    fair = [statistics.g_test(dice.multinomial(20_000, p), into.mass) for _ in range(1000)]
    assert (
        min(fair) > statistics.LEVEL and abs(np.mean(np.array(fair) < 0.1) - 0.1) < ERRORS_FAIR * (0.09 / 1000) ** 0.5
    )


def test_bins_hold_enough_and_all():
    for row in draws.rows(4096).values():
        p = row.double().softmax(0).numpy()
        into = statistics.bins(p, np.argsort(-p, kind="stable"), 2**14)
        assert into.mass.min() * 2**14 >= statistics.LEAST and abs(into.mass.sum() - 1) < 2.0**-40
        assert len(into.mass) > 5 and np.allclose(into.put(p / p.sum()), into.mass)
    holes = np.array([0.5, 0.0, 0.5])
    assert statistics.bins(holes, np.arange(3), 1000).counts(np.array([0, 2, 1])) is None


def test_no_run_makes_more_tests_than_the_level_allows():
    assert 3 * len(DRAWN) + 4 + 1 <= statistics.TESTS


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True], ids=["rich", "plain"])
def test_exit_codes_and_summary(plain, monkeypatch, capsys, single_thread):
    if plain:
        monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    monkeypatch.setattr(samplers, "PEER_QUICK", samplers.Effort(1024, 2**12, 0, 2**12, 2**14, 16))
    assert cli.main(["verify", "--quick", "--peer", "tests.tools.test_verify:gumbel"]) == 0
    said = capsys.readouterr().out
    assert "right. All tests together" in said and DRAWN[0] in said.replace("\n", "")
    assert cli.main(["verify", "--quick", "--peer", "tests.tools.test_verify:ties_to_the_first"]) == 1
    said = capsys.readouterr().out
    assert f"wrong: {DRAWN[2]}" in said and "WRONG" in said


@pytest.mark.parametrize("arguments, sentence", [
    (["--backend", "nonsense"], "known engines"),
    (["--peer", "nonsense"], "MODULE:FUNCTION"),
    (["--peer", "tests.tools.test_verify:nonsense"], "cannot be imported"),
    (["--peer", "nonsense_module:f"], "cannot be imported"),
    (["--peer", "tests.tools.test_verify:CPU"], "must be a function"),
    (["--seed", "-1"], "whole number"),
    (["--device", "tpu"], "invalid choice"),
    (["--backend", "cpu", "--peer", "a:b"], "not allowed"),
])  # fmt: skip
def test_a_request_that_cannot_be_met_is_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", *arguments])
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err


def test_without_scipy_there_is_a_sentence(monkeypatch, capsys):
    import sys

    monkeypatch.delitem(sys.modules, "fastdecode.verify.statistics")
    monkeypatch.delattr(verify, "statistics")
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", "--quick"])
    assert stopped.value.code == 2 and "pip install scipy" in capsys.readouterr().err


def test_the_doctor_does_not_load_the_judge():
    assert fd.info()["self-test"]  # and scipy stays optional: doctor.py imports nothing of verify
    assert "verify" not in vars(__import__("fastdecode.cli.doctor", fromlist=["doctor"]))
