"""How a list of logits processors is read: what becomes a plan, and what stays in its place."""

from __future__ import annotations

import pytest
import torch

import fastdecode as fd

transformers = pytest.importorskip("transformers")

from transformers.generation import logits_process as theirs  # noqa: E402

from fastdecode import hf  # noqa: E402
from fastdecode.hf import stages  # noqa: E402
from tests.support.loops import ALL, INF, OLD, RAW, ask  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- reading a list of processors ------------------------------------------------------------------------------------


class Foreign(theirs.LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores


class Subclass(theirs.TopKLogitsWarper):
    pass


def test_warpers_become_plans_in_their_order():
    foreign = Foreign()
    found = stages.read(
        theirs.LogitsProcessorList(
            [theirs.TopKLogitsWarper(5), theirs.MinPLogitsWarper(0.1), foreign, theirs.TemperatureLogitsWarper(0.5),
             hf.TopHLogitsWarper(0.4, variant="paper"), theirs.TypicalLogitsWarper(0.9, min_tokens_to_keep=2),
             hf.FusedLogitsProcessor(fd.plan(fd.top_a(0.2)))]
        )
    )  # fmt: skip
    assert [repr(stage) if stage is not foreign else "foreign" for stage in found.before] == [
        "plan(top_k(5), min_p(0.1))", "foreign"
    ]  # fmt: skip
    assert repr(found.last) == "plan(temperature(0.5), top_h(0.4), typical_p(0.9, min_tokens_to_keep=2), top_a(0.2))"
    assert found.normalize is None


def test_every_warper_of_transformers_is_read():
    made = [
        theirs.TemperatureLogitsWarper(0.5), theirs.TopKLogitsWarper(5, min_tokens_to_keep=7), theirs.TopPLogitsWarper(0.9),
        theirs.TopPLogitsWarper(0.0, min_tokens_to_keep=3), theirs.MinPLogitsWarper(0.1), theirs.TypicalLogitsWarper(0.9),
        theirs.EpsilonLogitsWarper(0.25), theirs.EtaLogitsWarper(0.25, device="cpu"),
        *([] if OLD else [theirs.TopHLogitsWarper(0.5)]),
    ]  # fmt: skip
    expected = ["temperature(0.5)", "top_k(7)", "top_p(0.9)", "top_k(3)", "min_p(0.1)", "typical_p(0.9)", "epsilon_cutoff(0.25)", "eta_cutoff(0.25)",
                *([] if OLD else ["top_h(0.5, variant='hf')"])]  # fmt: skip
    assert repr(stages.read(made).last) == f"plan({', '.join(expected)})"
    assert not OLD or not hasattr(theirs, "TopHLogitsWarper")
    if not OLD:
        assert repr(stages.read(made[-1:], "paper").last) == "plan(top_h(0.5))"


def test_what_is_not_known_exactly_stays_in_its_place():
    changed = theirs.TopKLogitsWarper(5, filter_value=-1e4)
    odd = [
        Subclass(5),
        changed,
        theirs.TemperatureLogitsWarper(INF),
        hf.SamplerLogitsProcessor(None, seed=1),
        Foreign(),
    ]
    if not OLD:
        odd.append(theirs.TopHLogitsWarper(0.5))
        odd[-1].top_n = 50
    for processor in odd:
        found = stages.read([theirs.TopKLogitsWarper(9), processor])
        assert (
            repr(found.before[0]) == "plan(top_k(9))" and found.before[1] is processor and repr(found.last) == "plan()"
        )

    class OtherList(theirs.LogitsProcessorList):
        pass

    whole = OtherList([theirs.TopKLogitsWarper(9)])
    assert stages.read(whole).before == [whole]


def test_a_final_normalisation_does_not_part_plan_and_draw():
    last = theirs.LogitNormalization()
    found = stages.read([theirs.TopKLogitsWarper(9), last])
    assert (found.before, repr(found.last), found.normalize) == ([], "plan(top_k(9))", last)
    found = stages.read([last, theirs.TopKLogitsWarper(9)])
    assert (found.before, repr(found.last), found.normalize) == ([last], "plan(top_k(9))", None)


@pytest.mark.parametrize("last", [True, False])
def test_foreign_processors_see_and_change_the_scores(llama, prompts, last):
    """A foreign processor before, between or after the warpers gets what transformers would give it."""

    class Favour(theirs.LogitsProcessor):
        def __init__(self):
            self.seen = []

        def __call__(self, input_ids, scores):
            self.seen.append((input_ids.clone(), scores.clone()))
            return torch.where(scores.argmax(1, keepdim=True) == torch.arange(300), -INF, scores)

    def spying(model, input_ids, logits_processor, **rest):
        order = [*logits_processor, favour] if last else [favour, *logits_processor]
        return hf.sample(model, input_ids, theirs.LogitsProcessorList(order), **rest, seed=6)

    favour = Favour()
    made = llama.generate(**ask(prompts, do_sample=True, **{**RAW, "top_k": 6}, **ALL, custom_generate=spying))
    top = theirs.TopKLogitsWarper(6)
    for step, (ids, scores) in enumerate(favour.seen):
        assert torch.equal(ids, made.sequences[:, : prompts.shape[1] + step])
        assert torch.equal(scores, top(None, made.logits[step]) if last else made.logits[step])
        survivors = made.scores[step] > -INF
        assert (survivors.sum(1) == (5 if last else 6)).all()
        assert survivors.gather(1, made.sequences[:, prompts.shape[1] + step, None]).all()
        assert not survivors.gather(1, made.logits[step].argmax(1, keepdim=True)).any()
