"""Here a loop that keeps nothing from step to step, neither cache nor batch, judges soft thinking on a tiny model."""

from __future__ import annotations

import math

import pytest
import torch

import fastdecode as fd
from tests.support.loops import MIN_P, ask
from tests.support.tolerance import CACHED

transformers = pytest.importorskip("transformers")
from fastdecode import hf  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

END = 299
DEFAULTS = {"custom_generate": hf.soft_thinking, "end_of_thinking": END, "cold_stop": 0.0, "seed": 7,
            "return_dict_in_generate": True, "do_sample": True, "top_k": 0}  # fmt: skip


def think(model, prompts, **options):
    return model.generate(**ask(prompts, **{**DEFAULTS, **options}))


def by_hand(model, prompt, row: int, recorded, plan, answer, end: int, **options):
    """One row, from the whole text in every step: its tokens, and the mixtures of its thinking. What is fed is what was recorded
    before: this model makes 1e-6 into 1e-3 in ten steps that feed on each other."""
    table = model.get_input_embeddings().weight
    fed, tokens, mixtures, thinking = table[prompt], [], [], True
    for step in range(recorded.ids.shape[1]):
        logits = model(inputs_embeds=fed[None]).logits[0, -1]
        if thinking:
            soft = fd.soft_tokens(logits, plan, seed=7, step=step, streams=row, **options)
            token = int(soft.tokens)
            thinking = token != end
        if thinking:
            mixtures.append(soft)
            ids, weights = recorded.ids[row, step], recorded.weights[row, step]
            new = (weights[ids >= 0][:, None] * table[ids[ids >= 0]]).sum(0)
        else:
            if tokens and (end in tokens):
                token = int(fd.sample(logits, answer, seed=7, step=step, streams=row).tokens)
            new = table[token]
        tokens.append(token)
        fed = torch.cat([fed, new[None]])
    return tokens, mixtures


@pytest.mark.parametrize("noise", ["none", "gumbel", "dirichlet", "multi"])
@torch.no_grad()
def test_rows_think_and_answer_as_one_by_one(llama, prompts, noise):
    plan, answer = fd.plan(fd.temperature(0.8), fd.top_p(0.9)), fd.plan(fd.temperature(1.5), fd.min_p(0.05))
    free = think(llama, prompts, thinking_plan=plan, noise=noise)
    end = int(free.sequences[1, 4 + 3])  # row 1 will stop thinking in step 3, if not before
    out = think(llama, prompts, thinking_plan=plan, noise=noise, end_of_thinking=end, **MIN_P)
    told = think(
        llama, prompts, thinking_plan=plan, noise=noise, end_of_thinking=end, answer_plan=answer, do_sample=False
    )
    assert torch.equal(out.sequences, told.sequences)
    phases = set()
    for row, prompt in enumerate(prompts):
        tokens, mixtures = by_hand(llama, prompt, row, out.soft, plan, answer, end, noise=noise)
        assert out.sequences[row, 4:].tolist() == tokens
        n = len(mixtures)
        phases.add(n)
        assert out.soft.soft[row].tolist() == [True] * n + [False] * (12 - n)
        for step, soft in enumerate(mixtures):
            width = len(soft.ids)
            assert torch.equal(out.soft.ids[row, step, :width], soft.ids)
            assert (out.soft.weights[row, step, :width] - soft.weights).abs().max() < CACHED
            assert (out.soft.entropy[row, step] - soft.entropy).abs() < CACHED
        assert torch.equal(out.soft.tokens[row], out.sequences[row, 4:])
        assert torch.equal(out.soft.ids[row, n:, 0], out.sequences[row, 4 + n :])
        assert (out.soft.weights[row, n:, 0] == 1).all() and (out.soft.weights[row, n:, 1:] == 0).all()
        assert out.soft.logprobs[row, n:].isnan().all() and not out.soft.logprobs[row, :n].isnan().any()
    assert len(phases) > 1 and min(phases) < 12  # rows in different phases


def test_rows_that_do_not_think_are_those_of_sample(llama, prompts):
    ours = llama.generate(**ask(prompts, **MIN_P, custom_generate=hf.sample, seed=7))
    thinks = torch.tensor([False, True, False])
    out = think(llama, prompts, thinks=thinks, **MIN_P)
    assert torch.equal(out.sequences[~thinks], ours[~thinks]) and not torch.equal(out.sequences[1], ours[1])
    assert torch.equal(think(llama, prompts, thinks=thinks & False, **MIN_P).sequences, ours)
    greedy = think(llama, prompts, max_thinking=0, do_sample=False)
    assert (greedy.sequences[:, 4] == END).all()
    prompts_and_end = torch.cat([prompts, torch.full((3, 1), END)], 1)
    rest = llama.generate(**ask(prompts_and_end, do_sample=False, max_new_tokens=11))
    assert torch.equal(greedy.sequences, rest)


def test_cold_stop_waits_for_patience_and_is_strict(llama, prompts):
    certain = {"thinking_plan": fd.plan(fd.temperature(0.0))}  # entropy 0 in every step
    for options, steps in (
        ({"cold_stop": 1e-9, "patience": 4}, 3),
        ({"cold_stop": 1e-9, "patience": 1}, 0),
        ({"cold_stop": 0.0, "patience": 1}, None),  # 0 is not below 0
        ({"cold_stop": 1e-9, "patience": 4, "max_thinking": 2}, 2),
        ({"max_thinking": 5}, 5),
    ):
        out = think(llama, prompts, **certain, **options)
        n = 12 if steps is None else steps
        assert out.soft.soft.sum(1).tolist() == [n] * 3
        own = out.sequences[:, 4:]
        if steps is None:
            assert not (own == END).any()
        else:
            assert (own[:, steps] == END).all() and (own[:, :steps] != END).all()
            assert (out.soft.entropy[:, : steps + 1] == 0).all() and out.soft.entropy[:, steps + 1 :].isnan().all()
    # A single uncertain step starts the count again.
    free = think(llama, prompts)
    entropy = free.soft.entropy[0].tolist()
    bound = sorted(entropy)[8]
    stopped = think(llama, prompts, cold_stop=bound, patience=3)
    run, expected = 0, 12
    for step, nats in enumerate(entropy):
        run = run + 1 if nats < bound else 0
        if run == 3:
            expected = step
            break
    assert 2 < expected < 12 and int(stopped.soft.soft[0].sum()) == expected


def test_a_row_ends_while_it_thinks(llama, prompts):
    free = think(llama, prompts)
    eos = int(free.sequences[0, 4 + 2])
    out = think(llama, prompts, eos_token_id=eos)
    own = out.sequences[0, 4:]
    first = own.tolist().index(eos)
    assert first <= 2 and (own[first + 1 :] == 0).all() and not out.soft.soft[0, first + 1 :].any()


def test_small_tau_feeds_single_tokens(llama, prompts):
    """Then a text that thinks is one that the model reads as tokens."""
    out = think(llama, prompts, tau=1e-6)
    assert (out.soft.weights[..., 0] == 1).all() and out.soft.soft.all()
    logits = llama(out.sequences).logits[:, 3:-1]
    for step in range(12):
        again = fd.soft_tokens(logits[:, step], hf.thinking.THINKING, tau=1e-6, seed=7, step=step)
        assert torch.equal(again.tokens, out.sequences[:, 4 + step])


def test_a_model_that_scales_what_it_looks_up(llama, prompts):
    class Scaled(torch.nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) * 2

    table = llama.get_input_embeddings()
    scaled = Scaled.from_pretrained(table.weight.detach().clone() / 2)
    expected = think(llama, prompts)
    try:
        llama.set_input_embeddings(scaled)
        out = think(llama, prompts)
    finally:
        llama.set_input_embeddings(table)
    assert torch.equal(out.sequences, expected.sequences)
    assert torch.equal(out.soft.weights, expected.soft.weights)


def test_without_a_record(llama, prompts):
    full = think(llama, prompts)
    assert torch.equal(think(llama, prompts, return_dict_in_generate=False), full.sequences)
    torch.manual_seed(3)
    a, b = (think(llama, prompts, seed=None).sequences for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(think(llama, prompts, seed=None).sequences, a) and not torch.equal(a, b)


def test_a_policy_gradient_step(llama, prompts):
    """loss.backward() through recorded soft tokens, as SofT-GRPO does it."""
    out = think(llama, prompts, max_new_tokens=3)
    step = fd.SoftTokens(
        **{f: (v[:, 0] if torch.is_tensor(v := getattr(out.soft, f)) else v) for f in out.soft.__slots__}
    )
    logits = llama(prompts).logits[:, -1]
    ratio = (fd.soft_logprobs(logits, step, hf.thinking.THINKING) - step.logprobs).exp()
    assert (ratio - 1).abs().max() < CACHED
    ratio.mul(torch.tensor([1.0, -1.0, 0.5])).sum().backward()
    grad = llama.lm_head.weight.grad
    llama.zero_grad()
    assert grad.abs().max() > 0 and grad.isfinite().all()


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"end_of_thinking": None}, r'the last one of tokenizer.encode\("</think>"\); got None'),
        ({"end_of_thinking": 300}, "end_of_thinking must be the id .* got 300"),
        ({"num_beams": 2}, "decodes with one beam; got beam_sample"),
        ({"use_cache": False}, "needs the cache"),
        ({"output_scores": True}, "got output_scores: leave it out"),
        ({"cold_stop": -1.0}, "cold_stop must be a number of nats >= 0; got -1.0"),
        ({"patience": 0}, "patience must be a whole number >= 1; got 0"),
        ({"max_thinking": -1}, "max_thinking must be a whole number >= 0; got -1"),
        ({"thinks": torch.ones(2, dtype=torch.bool)}, r"thinks must be a bool tensor of shape \[3\]"),
        ({"noise": "normal"}, "noise must be one of"),
    ],
)
def test_errors(llama, prompts, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        think(llama, prompts, **options)


def test_errors_of_rows_and_models(llama, models, prompts):
    with pytest.raises(ValueError, match="needs a decoder that generates with transformers' own loop; got Bart"):
        think(models["bart"], prompts)

    def broken(module, inputs, output):
        output.logits[1] = math.nan
        return output

    hook = llama.register_forward_hook(broken)
    try:
        with pytest.raises(ValueError, match="rows that do not: 1"):
            think(llama, prompts)
    finally:
        hook.remove()
