"""What comes in at the doors of our loops, and what they hand out: arguments that generate keeps, plans, float64, token ids."""

from __future__ import annotations

import functools

import pytest
import torch

import fastdecode as fd

transformers = pytest.importorskip("transformers")

from transformers.generation import logits_process as theirs  # noqa: E402

from fastdecode import hf  # noqa: E402
from tests.support import tiny_model  # noqa: E402
from tests.support.loops import ALL, NEW, OLD, ask, same  # noqa: E402
from tests.support.tolerance import NATS_RELATIVE  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SOFT = functools.partial(hf.soft_thinking, end_of_thinking=3)
LOOPS = {"sample": hf.sample, "sample_with": hf.sample_with(seed=1), "soft_thinking": SOFT}


class Heard(transformers.generation.BaseStreamer):
    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.tokens.append("end")


# ---- what generate keeps from a custom loop --------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_an_assistant_is_not_ignored(llama, prompts, loop):
    options = ask(prompts[:1], do_sample=True, custom_generate=loop)
    with pytest.raises(ValueError, match="without an assistant; got assistant_model: leave"):
        llama.generate(**options, assistant_model=tiny_model.llama())
    with pytest.raises(ValueError, match="without an assistant; got num_assistant_tokens: leave"):
        llama.generate(**options, num_assistant_tokens=5)
    with pytest.raises(ValueError, match="got assisted_generation: leave custom_generate out"):
        llama.generate(**options, prompt_lookup_num_tokens=5)


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_streamer_is_not_ignored(llama, prompts, loop):
    remedy = "functools.partial" if loop is SOFT else r"sample_with\(streamer=streamer\), or use fastdecode.hf.patch"
    with pytest.raises(ValueError, match=f"keeps its streamer .*{remedy}"):
        llama.generate(**ask(prompts[:1], custom_generate=loop), streamer=Heard())
    bound = functools.partial(loop, streamer=Heard())
    with pytest.raises(ValueError, match="keeps its streamer"):
        llama.generate(**ask(prompts[:1], custom_generate=bound), streamer=Heard())


def test_the_remedies_work(llama, prompts):
    options = ask(prompts[:1], do_sample=False)
    expected, bound, patched, soft = Heard(), Heard(), Heard(), Heard()
    llama.generate(**options, streamer=expected)
    llama.generate(**options, custom_generate=hf.sample_with(streamer=bound))
    llama.generate(**options, custom_generate=functools.partial(SOFT, max_thinking=0, streamer=soft))
    with hf.patch(llama):
        llama.generate(**options, streamer=patched)
    assert expected.tokens == bound.tokens == patched.tokens and len(soft.tokens) == len(expected.tokens)


def test_only_processes_that_wait_for_each_other_are_told(llama, prompts):
    llama.generate(**ask(prompts, custom_generate=hf.sample), synced_gpus=False)
    with pytest.raises(ValueError, match=r"keeps synced_gpus .*got True"):
        llama.generate(**ask(prompts, custom_generate=hf.sample), synced_gpus=True)


def test_another_models_generate_is_no_business_of_ours(llama, prompts):
    """An assistant that decodes with our loop, inside a generate that has one."""
    options = {**ask(prompts[:1], do_sample=False), "assistant_model": tiny_model.llama()}
    expected = llama.generate(**options)
    with hf.patch(options["assistant_model"]):
        assert torch.equal(llama.generate(**options), expected)


def test_a_patched_call_with_an_assistants_options_is_transformers_own(llama, prompts):
    options = ask(prompts[:1], do_sample=False, num_assistant_tokens=5)
    expected = llama.generate(**options)
    with hf.patch(llama):
        assert torch.equal(llama.generate(**options), expected)


# ---- plans are no processors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [fd.plan(fd.min_p(0.1)), fd.min_p(0.1)], ids=["plan", "rule"])
def test_a_plan_among_the_processors(llama, prompts, thing):
    message = (
        r"takes processors; got .*: pass logits_processor=\[fastdecode.hf.FusedLogitsProcessor\(fastdecode.plan\(min_p"
    )
    options = ask(prompts, do_sample=True)
    for processors in ([thing], [theirs.TopKLogitsWarper(3), thing]):
        with pytest.raises(TypeError, match=message):
            llama.generate(**options, logits_processor=processors, custom_generate=hf.sample)
        with hf.patch(llama), pytest.raises(TypeError, match=message):
            llama.generate(**options, logits_processor=processors)
    with hf.patch(llama), pytest.raises(TypeError, match=message):
        llama.generate(**options, logits_processor=thing)
    with pytest.raises(TypeError, match=message):
        hf.sample_with()(llama, prompts, [thing], None, llama.generation_config)


# ---- float64 ---------------------------------------------------------------------------------------------------------


class Doubled(theirs.LogitsProcessor):
    """Scores of a processor that computes in float64."""

    def __call__(self, input_ids, scores):
        return scores.double() * 1.5


SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 7, "top_p": 0.95}


@pytest.mark.parametrize("processors", [[], [Doubled()]], ids=["model", "processor"])
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_float64(llama, prompts, processors, wide):
    model = tiny_model.llama().double() if wide else llama
    greedy = ask(prompts, do_sample=False, logits_processor=processors)
    expected = model.generate(**greedy)
    assert torch.equal(model.generate(**greedy, custom_generate=hf.sample), expected)
    if not wide:
        everything = {**greedy, **ALL}
        same(model.generate(**everything, custom_generate=hf.sample), model.generate(**everything))
    drawing = hf.SamplerLogitsProcessor(fd.plan(fd.temperature(0.8), fd.top_k(7), fd.top_p(0.95)), seed=3)
    judged = model.generate(**ask(prompts, do_sample=False, logits_processor=[*processors, drawing]))
    options = ask(prompts, **SAMPLING, logits_processor=processors)
    assert torch.equal(model.generate(**options, custom_generate=hf.sample, seed=3), judged)
    # What comes in between, and behind, our warpers.
    around = [
        hf.MinPLogitsWarper(0.01),
        Doubled(),
        hf.MinPLogitsWarper(0.01),
        hf.FusedLogitsProcessor(fd.plan(fd.top_k(7))),
    ]
    plain = [theirs.MinPLogitsWarper(0.01), Doubled(), theirs.MinPLogitsWarper(0.01), theirs.TopKLogitsWarper(7)]
    expected = model.generate(**ask(prompts, do_sample=False, logits_processor=plain))
    for loop in ({}, {"custom_generate": hf.sample}):
        assert torch.equal(model.generate(**ask(prompts, do_sample=False, logits_processor=around), **loop), expected)
    soft = model.generate(**ask(prompts, custom_generate=SOFT, logits_processor=processors, seed=1, max_thinking=4))
    assert soft.shape[1] > prompts.shape[1]
    texts = hf.generate_temperatures(model, prompts, [0.0], 2, eos_token_id=[], max_new_tokens=NEW)
    greedy = model.generate(**ask(prompts, do_sample=False))[:, prompts.shape[1] :]
    assert [text.tokens for text in texts] == greedy.repeat_interleave(2, 0).tolist()


def test_our_warpers_answer_float64_with_float64():
    scores = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for ours, transformers_own in (
        (hf.TopKLogitsWarper(5), theirs.TopKLogitsWarper(5)),
        (hf.TopPLogitsWarper(0.7), theirs.TopPLogitsWarper(0.7)),
        (hf.TemperatureLogitsWarper(2.0), theirs.TemperatureLogitsWarper(2.0)),
    ):
        found, expected = ours(None, scores), transformers_own(None, scores)
        assert found.dtype == expected.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=NATS_RELATIVE, atol=NATS_RELATIVE)
    found = hf.MultiTemperatureLogitsProcessor([0.5, 1.0, 2.0])(None, scores)
    torch.testing.assert_close(
        found, scores / torch.tensor([[0.5], [1.0], [2.0]]), rtol=NATS_RELATIVE, atol=NATS_RELATIVE
    )


@pytest.mark.skipif(OLD, reason="transformers 4.57 has no such processors")
def test_continuous_batches_of_float64():
    scores = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    processor = hf.PerRequestLogitsProcessor("top_k", 5)
    argument = torch.empty(2, dtype=torch.int32)
    processor.fill_defaults(argument)
    found = processor(scores, argument)
    assert found.dtype == torch.float64 and (found > -torch.inf).sum(1).tolist() == [5, 5]


# ---- token ids -------------------------------------------------------------------------------------------------------


class Noted(theirs.LogitsProcessor):
    """Remembers the ids that it is given, as a processor and as a stopping criterion."""

    def __init__(self):
        self.ids = []

    def __call__(self, input_ids, scores):
        input_ids.view(-1)
        self.ids.append(input_ids)
        return scores


class Stop(transformers.StoppingCriteria):
    def __init__(self, noted):
        self.noted = noted

    def __call__(self, input_ids, scores, **kwargs):
        self.noted(input_ids, scores)
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "loop", [{"custom_generate": hf.sample}, {"custom_generate": SOFT, "max_thinking": 0}], ids=["sample", "soft"]
)
def test_token_ids_are_those_of_transformers(llama, prompts, loop, rows):
    given = prompts[:rows]
    options = ask(given, do_sample=False)
    expected, found = Noted(), Noted()
    for noted, how in ((expected, {}), (found, loop)):
        llama.generate(**options, **how, logits_processor=[noted], stopping_criteria=[Stop(noted)])
    if loop["custom_generate"] is hf.sample:
        assert len(found.ids) == len(expected.ids) == 2 * NEW
        assert all(torch.equal(a, b) for a, b in zip(found.ids, expected.ids, strict=True)), (
            "also those of earlier steps"
        )
    for ids in found.ids:
        assert ids.dtype == torch.int64 and ids.is_contiguous() and ids.device == given.device


def test_a_prompt_of_32_bits(llama, prompts):
    noted = Noted()
    options = ask(prompts, do_sample=False)
    made = llama.generate(**options | {"inputs": prompts.int()}, custom_generate=hf.sample, logits_processor=[noted])
    assert torch.equal(made, llama.generate(**options)) and {ids.dtype for ids in noted.ids} == {torch.int64}
