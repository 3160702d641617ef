"""transformers' own warpers judge fastdecode.hf: the same masks, the same answers to bad arguments, the same calling convention.

Masks are compared with transformers in float32, as people run it. Where they differ, transformers' class runs once more in
float64, and every token must have a reason there: it belongs to a group of equal logits that transformers splits (fastdecode
never does), or transformers itself changes its mind when its parameter moves by the slack that rules.py grants. What is left
is the rounding of transformers' float32, and counted.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter

import pytest
import torch

import fastdecode as fd
from fastdecode import dispatch
from tests.support.cases import INPUTS, REAL, normal
from tests.support.tolerance import EXACT_EDGE

theirs = pytest.importorskip("transformers.generation.logits_process")

from fastdecode import hf  # noqa: E402

INF = math.inf

VALUES = {
    "TopHLogitsWarper": (0.1, 0.4, 0.8),
    "TopKLogitsWarper": (1, 50),
    "TopPLogitsWarper": (0.5, 0.9, 0.99),
    "MinPLogitsWarper": (0.3, 0.01),
    "TypicalLogitsWarper": (0.95, 0.5),
    "EpsilonLogitsWarper": (0.02, 3e-4),
    "EtaLogitsWarper": (2e-3, 1e-4),
}
HAS_TOP_H = hasattr(theirs, "TopHLogitsWarper")  # transformers 4.57 has none, and nothing judges ours there
if not HAS_TOP_H:
    del VALUES["TopHLogitsWarper"]
needs_top_h = pytest.mark.skipif(not HAS_TOP_H, reason="transformers 4.57 has no Top-H")
CASES = [(name, value) for name, values in VALUES.items() for value in values]
KEEPS = [name for name in VALUES if name != "TopHLogitsWarper"]  # transformers' Top-H has no min_tokens_to_keep
TINY = {"TopKLogitsWarper": 1, "TopPLogitsWarper": 0.01, "MinPLogitsWarper": 1.0, "TypicalLogitsWarper": 0.01,
        "EpsilonLogitsWarper": 0.9, "EtaLogitsWarper": 0.9}  # fmt: skip


def kept(scores: torch.Tensor) -> torch.Tensor:
    return scores > -INF


def nudged(name: str, parameter, options: dict, share: float, x: torch.Tensor) -> torch.Tensor:
    """The mask of transformers' class with its parameter moved by a share of itself."""
    warper = getattr(theirs, name)(parameter, **options)
    attribute = next(iter(inspect.signature(getattr(theirs, name)).parameters))
    if attribute != "top_k":
        setattr(warper, attribute, getattr(warper, attribute) * (1 + share))
    return kept(warper(None, x))


def judge(name: str, parameter, scores: torch.Tensor, **options) -> Counter:
    """Compare the masks of the two classes called `name`; the number of rows that differ, by reason. Fails without one."""
    with dispatch.use("reference"):  # the reference, in turn, judges every engine
        ours = kept(getattr(hf, name)(parameter, **options)(None, scores))
    assert ours.any(1).all(), "a row lost all its tokens"
    single = kept(getattr(theirs, name)(parameter, **options)(None, scores.float()))
    rows = (ours != single).any(1)
    if not rows.any():
        return Counter()
    ours, single, x = ours[rows], single[rows], scores[rows].double()
    double = nudged(name, parameter, options, 0.0, x)
    untied = ours != double  # less the tokens in tied groups that transformers splits
    for row in range(len(x)):
        for value in x[row][untied[row] | (ours[row] != single[row])].unique():
            group = x[row] == value
            assert ours[row][group].unique().numel() == 1, (
                f"fastdecode separated tokens with equal logits: row {row}, {value}"
            )
            untied[row] &= ~group | (double[row][group].unique().numel() == 1)
    slack = untied.any(1)
    if slack.any():
        share = 2 * EXACT_EDGE  # twice: the edge of eta moves with the square root of its parameter
        moved = [nudged(name, parameter, options, sign * share, x[slack]) for sign in (1, -1)]
        unexplained = untied[slack] & (moved[0] == moved[1])
        assert not unexplained.any(), (
            f"tokens without a reason: {unexplained.nonzero()[:8].tolist()} of the differing rows"
        )
    tie = (ours != double).any(1) & ~slack
    return Counter({"tie": int(tie.sum()), "slack": int(slack.sum()), "float32": int((~tie & ~slack).sum())})


# ---- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "parameter"), [(name, value) for name, values in VALUES.items() for value in values[1:]]
)
def test_masks_on_real_rows(name, parameter, dtype, temperature):
    scores = (REAL.logits() / temperature).to(dtype)
    why = judge(name, parameter, scores)
    print(f"{name}({parameter}) at T={temperature}, {dtype}: {sum(why.values())} of 64 rows differ: {dict(why)}")
    assert not kept(getattr(hf, name)(parameter)(None, scores)).all(), "nothing was removed"


SYNTHETIC = ("flat", "peaked", "long tail", "one hot", "all equal", "integer ties", "f16 rounded", "+1e4", "-1e4", "subnormal",
             "signed zeros", "holes", "one survivor", "descending", "one group")  # fmt: skip


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_masks_on_synthetic_rows(name, parameter):
    total = Counter()
    for given in SYNTHETIC:
        if (name, given) == ("TypicalLogitsWarper", "subnormal"):
            continue  # transformers compares ln p, in which differences of 1e-40 between logits are lost
        try:
            total += judge(name, parameter, INPUTS[given].logits())
        except AssertionError as error:
            raise AssertionError(f"input {given!r}: {error}") from error
    print(f"{name}({parameter}): {dict(total)}")


def test_every_difference_can_be_found():
    """A mask that is off by one token, or cuts between ties, is not excused: judge() can fail."""
    x = normal(4, 300, 2.0, 3)
    for name, parameter, wrong in (
        ("TopPLogitsWarper", 0.9, 0.91), ("MinPLogitsWarper", 0.1, 0.08), ("TypicalLogitsWarper", 0.9, 0.88),
        ("EpsilonLogitsWarper", 4e-3, 3e-3), ("EtaLogitsWarper", 2e-3, 1e-3), ("TopHLogitsWarper", 0.5, 0.48),
        ("TopKLogitsWarper", 20, 21),
    ):  # fmt: skip
        if name not in VALUES:
            continue
        judge(name, parameter, x)
        right = getattr(hf, name).__call__
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                getattr(hf, name), "__call__",
                lambda self, ids, scores, right=right, name=name, wrong=wrong: right(getattr(hf, name)(wrong), ids, scores),
            )  # fmt: skip
            with pytest.raises(AssertionError, match="without a reason"):
                judge(name, parameter, x)


@pytest.mark.parametrize("keep", [2, 5, 10**6])
@pytest.mark.parametrize("name", KEEPS)
def test_min_tokens_to_keep(name, keep):
    x = torch.cat([normal(16, 1000, 3.0, 4), normal(4, 1000, 2.0, 5).round(), INPUTS["holes"].logits()])
    judge(name, TINY[name], x, min_tokens_to_keep=keep)
    alone = kept(getattr(hf, name)(TINY[name])(None, x)).sum(1)
    more = kept(getattr(hf, name)(TINY[name], min_tokens_to_keep=keep)(None, x)).sum(1)
    assert (more >= kept(x).sum(1).clamp(max=keep)).all() and (more >= alone).all() and (more > alone).any()


@pytest.mark.parametrize(
    ("name", "most"), [("TopPLogitsWarper", 1000), pytest.param("TopHLogitsWarper", 100, marks=needs_top_h)]
)
def test_parameter_at_one(name, most):
    """Everything stays (top_h: the 100 largest); transformers' rounding may lose the tail, as a float64 run with slack shows."""
    x = torch.cat([normal(16, 1000, 3.0, 6), normal(4, 1000, 40.0, 7)])
    ours, other = kept(getattr(hf, name)(1.0)(None, x)), kept(getattr(theirs, name)(1.0)(None, x))
    assert (ours.sum(1) == most).all()
    assert torch.equal(ours, nudged(name, 1.0, {}, 2 * EXACT_EDGE, x.double()))
    assert not (other & ~ours).any() and not torch.equal(ours, other)


def test_top_p_of_zero():
    x = normal(16, 1000, 3.0, 6)
    for keep in (1, 3):
        assert judge("TopPLogitsWarper", 0, x, min_tokens_to_keep=keep) == Counter()
        assert (kept(hf.TopPLogitsWarper(0, min_tokens_to_keep=keep)(None, x)).sum(1) == keep).all()


@needs_top_h
def test_top_h_variants_differ():
    x = REAL.logits() / 1.5
    paper = hf.TopHLogitsWarper(0.4, variant="paper")(None, x)
    assert torch.equal(paper, fd.truncate(x, fd.plan(fd.top_h(0.4))))
    differ = (kept(paper) != kept(theirs.TopHLogitsWarper(0.4)(None, x))).any(1)
    assert differ.sum() == 60  # of 64 rows
    with pytest.raises(ValueError, match="variant"):
        hf.TopHLogitsWarper(0.4, variant="authors")


@pytest.mark.parametrize("n", [1.0, 3.0])
def test_top_n_sigma(n):
    x = normal(4, 1000, 3.0, 7)
    x[1, ::3] = -INF
    for row, answer in zip(x, hf.TopNSigmaLogitsWarper(n, filter_value=-7.0)(None, x)):
        finite = row[kept(row)].double()
        assert torch.equal(answer, torch.where(row.double() >= finite.max() - n * finite.std(), row, -7.0))
    with pytest.raises(ValueError, match="top_n_sigma must be"):
        hf.TopNSigmaLogitsWarper(-n)


# ---- chains --------------------------------------------------------------------------------------------------------

CHAIN = (  # the order of generate()
    ("TemperatureLogitsWarper", 1.3, fd.temperature(1.3)), ("TopHLogitsWarper", 0.9, fd.top_h(0.9, variant="hf")),
    ("TopKLogitsWarper", 40, fd.top_k(40)), ("TopPLogitsWarper", 0.97, fd.top_p(0.97)),
    ("MinPLogitsWarper", 0.02, fd.min_p(0.02)), ("TypicalLogitsWarper", 0.95, fd.typical_p(0.95)),
    ("EpsilonLogitsWarper", 1e-3, fd.epsilon_cutoff(1e-3)), ("EtaLogitsWarper", 0.02, fd.eta_cutoff(0.02)),
)  # fmt: skip
WHOLE = tuple(link for link in CHAIN if hasattr(theirs, link[0]))


@pytest.mark.parametrize(
    "chain", [WHOLE, CHAIN[:1] + CHAIN[2:4], CHAIN[:1] + CHAIN[4:5], CHAIN[:1] + CHAIN[5:]], ids=len
)
def test_chains_equal_transformers(chain):
    """Class by class and fused into one plan; in rows without ties, so that there is one right answer."""
    x = torch.cat([normal(32, 5000, 3.0, 8), INPUTS["long tail"].logits().repeat(1, 5)])
    x += normal(*x.shape, 1e-2, 9)
    double = theirs.LogitsProcessorList([getattr(theirs, name)(value) for name, value, _ in chain])(None, x.double())
    single = theirs.LogitsProcessorList([getattr(theirs, name)(value) for name, value, _ in chain])(None, x)
    ours = theirs.LogitsProcessorList([getattr(hf, name)(value) for name, value, _ in chain])(None, x)
    fused = hf.FusedLogitsProcessor(fd.plan(*(rule for *_, rule in chain)))(None, x)
    both = kept(ours) & kept(single)
    assert torch.equal(kept(ours), kept(double)) and torch.equal(ours[both], single[both])
    assert torch.equal(fused, ours)
    assert (kept(ours).sum(1) > 1).any() and not kept(ours).all()


# ---- the calling convention ----------------------------------------------------------------------------------------

MAKE = {name: lambda name=name, value=values[0]: getattr(hf, name)(value) for name, values in VALUES.items()} | {
    "TemperatureLogitsWarper": lambda: hf.TemperatureLogitsWarper(1.5),
    "TopNSigmaLogitsWarper": lambda: hf.TopNSigmaLogitsWarper(1.0),
    "FusedLogitsProcessor": lambda: hf.FusedLogitsProcessor(fd.plan(fd.temperature(1.5), fd.min_p(0.1))),
    "SamplerLogitsProcessor": lambda: hf.SamplerLogitsProcessor(fd.plan(fd.min_p(0.1)), seed=1),
}
WARPERS = [name for name in MAKE if hasattr(theirs, name)]


@pytest.mark.parametrize("name", MAKE)
def test_call(name):
    """The exact signature; scores stay as they are; the answer is a fresh tensor of the same kind."""
    assert list(inspect.signature(MAKE[name]().__call__).parameters) == ["input_ids", "scores"]
    assert isinstance(MAKE[name](), theirs.LogitsProcessor)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        scores = normal(3, 500, 3.0, 10).to(dtype)
        before = scores.clone()
        answer = theirs.LogitsProcessorList([MAKE[name]()])(torch.zeros(3, 7, dtype=torch.long), scores)
        assert torch.equal(scores, before) and answer.data_ptr() != scores.data_ptr()
        assert (answer.shape, answer.dtype, answer.device) == (scores.shape, scores.dtype, scores.device)
        assert not torch.equal(answer, scores)


@pytest.mark.parametrize("name", MAKE)
def test_what_generate_passes(name):
    """Row stride V + 1 (after the repetition penalty), one row, log-probabilities (beam search), tokens masked before."""
    scores = normal(3, 500, 3.0, 11)
    scores[:, ::2] = -INF
    expected = MAKE[name]()(None, scores)
    assert not kept(expected)[:, ::2].any()
    strided = torch.full((3, 501), math.nan)[:, :500].copy_(scores)
    assert strided.stride() == (501, 1)
    assert torch.equal(MAKE[name]()(None, strided), expected)
    assert torch.equal(MAKE[name]()(None, scores[:1]), expected[:1])
    if name not in ("TemperatureLogitsWarper", "SamplerLogitsProcessor"):
        assert torch.equal(kept(MAKE[name]()(None, scores.log_softmax(1))), kept(expected))


@pytest.mark.parametrize(
    "name", [name for name in MAKE if name not in ("TemperatureLogitsWarper", "SamplerLogitsProcessor")]
)
def test_filter_value(name):
    made, scores = MAKE[name](), normal(3, 500, 3.0, 12)
    expected = made(None, scores)
    made.filter_value = -123.0
    assert torch.equal(made(None, scores), expected.masked_fill(expected == -INF, -123.0))
    if name in VALUES:
        assert torch.equal(getattr(hf, name)(VALUES[name][0], -123.0)(None, scores), made(None, scores))


@pytest.mark.parametrize("name", WARPERS)
def test_nan_rows_stay_visible(name):
    scores = INPUTS["nan"].logits()
    answer = MAKE[name]()(None, scores)
    flagged = scores.isnan().any(1)
    assert torch.equal(answer.isnan(), scores.isnan())
    assert kept(answer[flagged].nan_to_num(0.0)).all()
    assert name == "TemperatureLogitsWarper" or not kept(answer[~flagged]).all()


@pytest.mark.parametrize("name", [name for name in MAKE if name != "SamplerLogitsProcessor"])
def test_infinite_scores_share_all_mass(name):
    """transformers' softmax turns such a row into NaN."""
    scores = normal(3, 500, 3.0, 17)
    scores[:, 7] = INF
    assert (kept(MAKE[name]()(None, scores)) == (scores == INF)).all()


def test_continuous_batching():
    """transformers reads the attribute of the object, and turns some of its own classes into per-request ones by attribute."""
    module = pytest.importorskip("transformers.generation.continuous_batching.cb_logits_processors")
    for name in MAKE:
        assert MAKE[name]().supports_continuous_batching == (name != "SamplerLogitsProcessor")
    by_row = hf.FusedLogitsProcessor(fd.plan(fd.min_p(torch.tensor([0.1, 0.2]))))
    assert not by_row.supports_continuous_batching
    listed = module.ContinuousBatchingLogitsProcessorList(
        theirs.LogitsProcessorList([make() for make in MAKE.values()]), per_request_processors=True
    )
    assert len(listed.logits_processor) == len(MAKE) - 1 and listed.supported_keys.keys() == {
        "temperature",
        "top_k",
        "top_p",
    }


# ---- constructors --------------------------------------------------------------------------------------------------

BAD = [
    *((name, args) for name in KEEPS if name != "TopKLogitsWarper" for args in ((0.5, -INF, 0), (0.5, -INF, -1), (0.5, -INF, None))),
    *((name, (value,)) for name in VALUES for value in (-0.1, 1.1, -1, 2.5, INF, -INF, None, [], "no", torch.ones(2))),
    *(("TemperatureLogitsWarper", (value,)) for value in (0, 1, 0.0, -1.0, math.nan, None, "1", True, torch.tensor(1.0))),
    *(("TopKLogitsWarper", (value,)) for value in (0, 1.0, 0.5, True, "1")),
    *((name, (value,)) for name in VALUES for value in (0, 0.0, 1, 1.0, True, "0.5")),
    *((name, (0.5, -INF, keep)) for name in KEEPS if name != "TopKLogitsWarper" for keep in (2.5, True, "2")),
    ("TopHLogitsWarper", (math.nan,)), ("MinPLogitsWarper", (math.nan,)), ("TypicalLogitsWarper", (math.nan,)),
    ("TopKLogitsWarper", (5, -INF, "2")), ("EtaLogitsWarper", (0.5, -INF, 1, "no such device")), ("TopPLogitsWarper", ()),
]  # fmt: skip
BAD = [case for case in BAD if hasattr(theirs, case[0])]


@pytest.mark.parametrize(("name", "args"), BAD, ids=repr)
def test_constructors_judge_arguments_alike(name, args):
    """What transformers refuses is refused with the same exception; what it accepts (True, "0.5", ...) is accepted and works."""
    outcome, made = [], None
    for module in (theirs, hf):
        try:
            made = getattr(module, name)(*args)
            outcome.append(None)
        except Exception as error:
            outcome.append((type(error), str(error).replace(f"{module.__name__}.", "")))
    assert outcome[0] == outcome[1]
    if outcome[1] is None:
        assert kept(made(None, normal(4, 50, 2.0, 13))).any(1).all()


@pytest.mark.parametrize(
    ("name", "args"),
    [("TemperatureLogitsWarper", (INF,)), ("TopPLogitsWarper", (math.nan,)), ("EpsilonLogitsWarper", (math.nan,)),
     ("EtaLogitsWarper", (math.nan,)), ("TopKLogitsWarper", (1, -INF, 2.5))],
)  # fmt: skip
def test_constructors_stricter_than_transformers(name, args):
    """Arguments that transformers accepts though no answer makes sense (or a later call fails) are refused at once."""
    getattr(theirs, name)(*args)
    with pytest.raises(ValueError, match="must be a"):
        getattr(hf, name)(*args)


@pytest.mark.parametrize("name", WARPERS)
def test_drop_in(name):
    """isinstance, attributes and constructor parameters are transformers' own; one keyword is new."""
    assert issubclass(getattr(hf, name), getattr(theirs, name))
    expected = [(p.name, p.default) for p in inspect.signature(getattr(theirs, name)).parameters.values()]
    found = [(p.name, p.default) for p in inspect.signature(getattr(hf, name)).parameters.values()]
    assert found == expected + ([("variant", "hf")] if name == "TopHLogitsWarper" else [])
    value = VALUES.get(name, (1.5,))[0]
    assert vars(getattr(theirs, name)(value)).items() <= vars(getattr(hf, name)(value)).items()
