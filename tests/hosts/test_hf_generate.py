"""fastdecode.hf inside transformers' generate(), with a tiny random Llama: the same tokens, and nothing else disturbed."""

from __future__ import annotations

import math

import pytest
import torch

import fastdecode as fd
from tests.support import tiny_model
from tests.support.cases import normal

transformers = pytest.importorskip("transformers")

from fastdecode import hf  # noqa: E402

INF = math.inf
NEW = 12
RAW = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}  # switches transformers' own warpers off


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return tiny_model.llama()


@pytest.fixture(scope="module")
def prompts():
    return torch.tensor([[5, 9, 77, 130], [8, 2, 250, 4], [61, 61, 3, 299]])


def generate(model, prompts, *processors, seed=0, **options):
    """generate() with all it can report; `sequences` without the prompt."""
    torch.manual_seed(seed)
    made = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), logits_processor=list(processors), max_new_tokens=NEW,
        return_dict_in_generate=True, output_scores=True, output_logits=True, **options,
    )  # fmt: skip
    made.sequences = made.sequences[:, prompts.shape[1] :]
    return made


# ---- FusedLogitsProcessor ------------------------------------------------------------------------------------------

SAME = {
    "temperature, top_k, top_p": (
        fd.plan(fd.temperature(0.7), fd.top_k(40), fd.top_p(0.9)), {"temperature": 0.7, "top_k": 40, "top_p": 0.9},
    ),
    "temperature, min_p": (fd.plan(fd.temperature(1.5), fd.min_p(0.1)), {**RAW, "temperature": 1.5, "min_p": 0.1}),
    "temperature, top_h": (
        fd.plan(fd.temperature(1.5), fd.top_h(0.6, variant="hf")), {**RAW, "temperature": 1.5, "top_h": 0.6},
    ),
    "typical": (fd.plan(fd.typical_p(0.8)), {**RAW, "typical_p": 0.8}),
    "epsilon, eta": (
        fd.plan(fd.epsilon_cutoff(3e-3), fd.eta_cutoff(0.02)), {**RAW, "epsilon_cutoff": 3e-3, "eta_cutoff": 0.02},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_fused_generates_what_transformers_generates(model, prompts, name):
    """The same torch seed, so: the same masks and the same values mean the same tokens."""
    plan, options = SAME[name]
    if "top_h" in options and not hasattr(transformers, "TopHLogitsWarper"):
        pytest.skip("transformers 4.57 has no Top-H")
    theirs = generate(model, prompts, do_sample=True, **options)
    ours = generate(model, prompts, hf.FusedLogitsProcessor(plan), do_sample=True, **RAW)
    assert torch.equal(ours.sequences, theirs.sequences)
    for a, b in zip(ours.scores, theirs.scores):
        assert torch.equal(a, b)
    removed = torch.stack(ours.scores) == -INF
    assert removed.any() and ((~removed).sum(-1) > 1).any(), "the test decides nothing"
    assert not torch.equal(ours.sequences, generate(model, prompts, do_sample=True, **RAW).sequences)


def test_transformers_adds_top_k_unless_told_otherwise(model, prompts):
    """The trap in FusedLogitsProcessor's docstring: without top_k=0, generate() cuts the survivors to 50."""
    everything = hf.FusedLogitsProcessor(fd.plan(fd.temperature(4.0)))
    trapped = generate(model, prompts, everything, do_sample=True)
    free = generate(model, prompts, everything, do_sample=True, **RAW)
    assert (torch.stack(trapped.scores) > -INF).sum(-1).max() == 50
    assert (torch.stack(free.scores) > -INF).all()


def test_output_logits_are_not_corrupted(model, prompts):
    plain = generate(model, prompts, do_sample=False)
    for processor in (hf.FusedLogitsProcessor(fd.plan(fd.temperature(2.0), fd.top_k(1))), hf.TopKLogitsWarper(1),
                      hf.TemperatureLogitsWarper(2.0), hf.SamplerLogitsProcessor(fd.plan(fd.top_k(1)))):  # fmt: skip
        made = generate(model, prompts, processor, do_sample=False)
        assert torch.equal(made.sequences, plain.sequences)  # the argmax survives, so the logits stay comparable
        for a, b in zip(made.logits, plain.logits):
            assert torch.equal(a, b)
        assert not torch.equal(made.scores[0], made.logits[0])


def test_after_a_repetition_penalty(model, prompts):
    """Scores then arrive with a row stride of V + 1."""
    options = {**RAW, "do_sample": True, "repetition_penalty": 1.3}
    theirs = generate(model, prompts, **{**options, "top_k": 20})
    assert torch.equal(generate(model, prompts, hf.TopKLogitsWarper(20), **options).sequences, theirs.sequences)


def test_beam_sampling_with_min_tokens_to_keep(model, prompts):
    """Beams pass log-probabilities and need two survivors in each row."""
    options = {"do_sample": True, "num_beams": 3}
    theirs = generate(model, prompts, **options, **{**RAW, "top_p": 0.01})
    for keep in (1, 2):
        processor = hf.FusedLogitsProcessor(fd.plan(fd.top_p(0.01, min_tokens_to_keep=keep)))
        ours = generate(model, prompts, processor, **options, **RAW)
        survivors = (torch.stack(ours.scores) > -INF).sum(-1)
        assert survivors.shape == (NEW, 9) and (survivors == keep).all()
    assert torch.equal(ours.sequences, theirs.sequences)


# ---- SamplerLogitsProcessor ----------------------------------------------------------------------------------------

PLAN = fd.plan(fd.temperature(1.5), fd.min_p(0.05))


def test_sampler_is_a_function_of_its_seed(model, prompts):
    def tokens(seed: int) -> torch.Tensor:
        return generate(model, prompts, hf.SamplerLogitsProcessor(PLAN, seed=seed), do_sample=False).sequences

    assert torch.equal(tokens(1), tokens(1))
    assert not torch.equal(tokens(1), tokens(2))
    # torch's generator has no part in it, and steps and rows draw for themselves
    again = generate(model, prompts, hf.SamplerLogitsProcessor(PLAN, seed=1), seed=99, do_sample=False)
    assert torch.equal(again.sequences, tokens(1))
    twins = generate(model, prompts[[0, 0]], hf.SamplerLogitsProcessor(PLAN, seed=1), do_sample=False).sequences
    assert not torch.equal(twins[0], twins[1])


def test_sampler_goes_on_or_begins_anew(model, prompts):
    sampler = hf.SamplerLogitsProcessor(PLAN, seed=1)
    first = generate(model, prompts, sampler, do_sample=False).sequences
    assert not torch.equal(generate(model, prompts, sampler, do_sample=False).sequences, first)
    assert len(sampler.samples) == 2 * NEW
    sampler.reset()
    assert torch.equal(generate(model, prompts, sampler, do_sample=False).sequences, first)
    assert len(sampler.samples) == NEW


def test_sampler_does_not_look_at_the_rest_of_the_batch(model, prompts):
    """A stream is a row's index: the first rows draw the same in a smaller batch, and beside other neighbours."""
    whole = generate(model, prompts, hf.SamplerLogitsProcessor(PLAN, seed=4), do_sample=False).sequences
    for rows in ([0], [0, 1], [0, 1, 1, 2, 2]):
        part = generate(model, prompts[rows], hf.SamplerLogitsProcessor(PLAN, seed=4), do_sample=False).sequences
        assert torch.equal(part[: min(len(rows), 2)], whole[: min(len(rows), 2)])


def test_sampler_emits_survivors_and_records_them(model, prompts):
    sampler = hf.SamplerLogitsProcessor(PLAN, seed=5, stats=True)
    made = generate(model, prompts, sampler, do_sample=False)
    assert len(sampler.samples) == NEW
    argmax = 0
    for token, logits, step in zip(made.sequences.unbind(1), made.logits, sampler.samples):
        survivors = fd.truncate(logits, PLAN)
        assert (survivors.gather(1, token[:, None]) > -INF).all()
        assert torch.equal(step.tokens, token) and torch.equal(step.kept, (survivors > -INF).sum(1))
        assert torch.equal(step.raw_logprobs, fd.sample(logits, logprobs_of=token[:, None]).logprobs_of[:, 0])
        argmax += int((token == logits.argmax(1)).sum())
    assert 0 < argmax < made.sequences.numel(), "greedy, or blind to the logits"


def test_sampler_with_ended_rows(model, prompts):
    """A row that met its end is padded by transformers; the others draw what they would have drawn."""
    free = generate(model, prompts, hf.SamplerLogitsProcessor(PLAN, seed=6), do_sample=False).sequences
    end = free[0, 3].item()
    ended = generate(
        model, prompts, hf.SamplerLogitsProcessor(PLAN, seed=6), do_sample=False, eos_token_id=end
    ).sequences
    assert ended[0].tolist() == free[0, :4].tolist() + [0] * (ended.shape[1] - 4)
    for row, whole in zip(ended, free):
        length = (whole == end).nonzero()[0].item() + 1 if (whole == end).any() else NEW
        assert torch.equal(row[:length], whole[:length])


# ---- SamplerLogitsProcessor, called by hand --------------------------------------------------------------------------


def test_sampler_answers_with_the_draw():
    plan, x = fd.plan(fd.temperature(1.5), fd.top_k(20)), normal(5, 500, 3.0, 14)
    sampler = hf.SamplerLogitsProcessor(plan, seed=3, stats=("entropy",))
    for step in range(3):
        answer = sampler(None, x)
        expected = fd.sample(x, plan, seed=3, step=step, stats=("entropy",))
        assert torch.equal(answer.argmax(1), expected.tokens)
        assert (answer.max(1).values == 0).all() and ((answer > -INF).sum(1) == 1).all()
        assert torch.equal(sampler.samples[step].tokens, expected.tokens)
        assert torch.equal(sampler.samples[step].entropy, expected.entropy) and sampler.samples[step].margin is None
    tokens = [record.tokens.tolist() for record in sampler.samples]
    assert tokens[0] != tokens[1] != tokens[2]
    sampler.reset()
    assert sampler.samples == [] and sampler(None, x).argmax(1).tolist() == tokens[0]


def test_sampler_passes_flagged_rows_on():
    x = normal(4, 100, 3.0, 15)
    x[1, 5], x[2] = math.nan, -INF
    sampler = hf.SamplerLogitsProcessor(None, seed=3)
    answer = sampler(None, x)
    assert sampler.samples[0].tokens[1:3].tolist() == [-1, -1]
    assert torch.equal(answer[1:3].nan_to_num(9.0, neginf=-9.0), x[1:3].nan_to_num(9.0, neginf=-9.0))
    assert ((answer[[0, 3]] > -INF).sum(1) == 1).all()


def test_sampler_seed_from_torch():
    seeds = []
    for _ in range(2):
        torch.manual_seed(11)
        seeds.append([hf.SamplerLogitsProcessor(None).seed for _ in range(2)])
    assert seeds[0] == seeds[1] and seeds[0][0] != seeds[0][1]


def test_a_rule_will_do_for_a_plan_and_nothing_else():
    for make in (hf.FusedLogitsProcessor, hf.SamplerLogitsProcessor):
        for given in (fd.top_k(5), [fd.top_k(5)]):
            assert make(given).plan == fd.plan(fd.top_k(5))
        with pytest.raises(TypeError, match=r"plan must be made with fastdecode.plan"):
            make(fd.top_k)
