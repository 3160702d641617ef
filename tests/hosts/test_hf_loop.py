"""generate(custom_generate=fastdecode.hf.sample) against transformers' own loop.

Greedy output is compared as it is. A sampled text is judged by transformers' loop with the draws put into it: under
`do_sample=False`, `SamplerLogitsProcessor(plan)` (judged in test_hf_generate.py) makes that loop emit what it drew.
"""

from __future__ import annotations

import logging
import warnings

import pytest
import torch

import fastdecode as fd

transformers = pytest.importorskip("transformers")

from transformers.generation import logits_process as theirs  # noqa: E402

from fastdecode import hf  # noqa: E402
from tests.support import loops  # noqa: E402
from tests.support.loops import ALL, CACHE, INF, MIN_P, NEW, OLD, PLAN, RAW, ask, end_of, judged, same  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- greedy --------------------------------------------------------------------------------------------------------

GREEDY = {
    "plain": {},
    "everything returned": ALL,
    "repetition penalty": {"repetition_penalty": 1.5, **ALL},
    "no repeated pairs": {"no_repeat_ngram_size": 2},
    "no cache": {"use_cache": False},
    "minimum": {"min_new_tokens": 8, **ALL},
    "max_time": {"max_time": 1e-9},
    "log-probabilities": {"renormalize_logits": True, **ALL},
    "a forced end": {"forced_eos_token_id": 7},
}


@pytest.mark.parametrize("options", GREEDY.values(), ids=GREEDY)
@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_greedy(models, prompts, kind, options):
    model = models[kind]
    for more in ({}, {"eos_token_id": end_of(model, prompts, 1, 3)}):
        expected = model.generate(**ask(prompts, do_sample=False, **options, **more))
        same(model.generate(**ask(prompts, do_sample=False, custom_generate=hf.sample, **options, **more)), expected)


def test_greedy_with_a_warper_that_removes_the_best(llama, prompts):
    options = ask(prompts, do_sample=False, logits_processor=[theirs.TypicalLogitsWarper(0.05)])
    expected = llama.generate(**options)
    same(llama.generate(**options, custom_generate=hf.sample), expected)
    assert not torch.equal(expected, llama.generate(**ask(prompts, do_sample=False))), "the best was never removed"


def test_a_long_text(prompts):
    """Longer than the memory that is taken at first, and than any limit on the length: the end token ends it."""
    from fastdecode.hf.loop import _Text

    for most in (None, 1000):
        text, tokens = _Text(prompts, most), torch.arange(3 * 700).view(700, 3)
        for column in tokens:
            text.append(column)
        text.shorten(5)
        assert torch.equal(text.ids, torch.cat([prompts, tokens[:-5].T], dim=1))


def test_greedy_with_a_left_padded_batch(llama, prompts):
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
    options = ask(prompts, do_sample=False) | {"attention_mask": mask}
    expected = llama.generate(**options)
    same(llama.generate(**options, custom_generate=hf.sample), expected)
    assert not torch.equal(expected, llama.generate(**ask(prompts, do_sample=False))), "the mask plays no part"


@pytest.mark.parametrize("name", ["static", "offloaded_static" if torch.cuda.is_available() else "dynamic"])
def test_greedy_with_other_caches(llama, prompts, name):
    options = ask(prompts, do_sample=False, cache_implementation=name)
    same(llama.generate(**options, custom_generate=hf.sample), llama.generate(**options))


def test_greedy_with_a_compiled_forward(llama, prompts, monkeypatch):
    """Where transformers compiles, it calls what get_compiled_call() gives it, for all steps but the first."""
    calls = []
    monkeypatch.setattr(type(llama), "_valid_auto_compile_criteria", lambda *_: True)
    monkeypatch.setattr(
        type(llama), "get_compiled_call", lambda *_: lambda **inputs: calls.append(1) or llama(**inputs)
    )
    options = ask(prompts, do_sample=False, cache_implementation="static")
    expected = llama.generate(**options)
    same(llama.generate(**options, custom_generate=hf.sample), expected)
    assert len(calls) == 2 * (NEW - 1)


def test_greedy_in_chunks_and_from_embeddings(llama, prompts):
    options = ask(prompts, do_sample=False, prefill_chunk_size=2)
    expected = llama.generate(**options)
    same(llama.generate(**options, custom_generate=hf.sample), expected)
    embedded = {"inputs_embeds": llama.get_input_embeddings()(prompts), "do_sample": False, "max_new_tokens": NEW}
    same(llama.generate(**embedded, custom_generate=hf.sample), llama.generate(**embedded))


@pytest.mark.parametrize("name", sorted({CACHE, "past_key_values"}))
@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
def test_greedy_goes_on_from_a_cache(llama, prompts, name):
    """Under the name that transformers has for it, and under the one it had."""
    made = []
    for loop in ({}, {"custom_generate": hf.sample}):
        cache = transformers.DynamicCache(config=llama.config)
        first = llama.generate(**ask(prompts, do_sample=False, **{name: cache}, **loop))
        made.append(llama.generate(**ask(first, do_sample=False, **{name: cache}, **loop)))
        assert cache.get_seq_length() == made[-1].shape[1] - 1
    same(made[1], made[0])


def test_no_deprecated_name_is_used(llama, prompts, monkeypatch):
    """Neither in a call of the model nor in an output; and the cache comes back."""
    said = []
    monkeypatch.setattr(logging.Logger, "warning_once", lambda self, message, *_: said.append(message))
    returned = {"return_dict_in_generate": True}
    loops_of_ours = (
        {"do_sample": False, **ALL, "custom_generate": hf.sample},
        {**MIN_P, **returned, "custom_generate": hf.sample, "stats": True},
        {**returned, "custom_generate": hf.soft_thinking, "end_of_thinking": 7},
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*deprecated")
        for options in loops_of_ours:
            made = llama.generate(**ask(prompts, **options))
            assert isinstance(made[CACHE], transformers.Cache)
        hf.generate_temperatures(llama, prompts, [0.0, 1.0], 1, max_new_tokens=3)
    assert not [message for message in said if "deprecated" in message]


# ---- sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "bart"])
@pytest.mark.parametrize("ends", [False, True])
def test_sampled_text(models, prompts, kind, ends):
    model = models[kind]
    options = {}
    if ends:
        free = judged(model, prompts, PLAN, 4)
        options["eos_token_id"] = int(free[1, 4 if model.config.is_encoder_decoder else prompts.shape[1] + 3])
    expected = judged(model, prompts, PLAN, 4, **options)
    ours = model.generate(**ask(prompts, **MIN_P, **options, custom_generate=hf.sample, seed=4))
    assert torch.equal(ours, expected)
    assert not ends or (expected[1, -3:] == 0).all(), "no row ended early"
    assert not torch.equal(ours, model.generate(**ask(prompts, **MIN_P, **options, custom_generate=hf.sample, seed=5)))


CHAINS = {
    "none": {}, "temperature": {"temperature": 0.7}, "top_k": {"top_k": 20}, "top_p": {"top_p": 0.8}, "min_p": {"min_p": 0.1},
    "typical": {"typical_p": 0.6}, "epsilon": {"epsilon_cutoff": 0.01}, "eta": {"eta_cutoff": 0.02},
    "all": {"temperature": 1.3, "top_k": 100, "top_p": 0.97, "min_p": 0.005, "typical_p": 0.95, "epsilon_cutoff": 1e-4,
            "eta_cutoff": 1e-3},
    "with a penalty before": {"repetition_penalty": 1.5, "top_p": 0.8},
    "normalised": {"renormalize_logits": True, "top_p": 0.8},
} | ({} if OLD else {"top_h": {"top_h": 0.6}, "top_h and top_k": {"top_h": 0.8, "top_k": 30}})  # fmt: skip


@pytest.mark.parametrize("options", CHAINS.values(), ids=CHAINS)
def test_scores_are_those_of_transformers(llama, prompts, options):
    """transformers' own processors, on the logits and the texts that came back, give the scores that came back; and the tokens
    are drawn from those. Asking for scores changes no token."""
    seen = []

    def spying(model, input_ids, logits_processor, **rest):
        seen.append(logits_processor)
        return hf.sample(model, input_ids, logits_processor, **rest, seed=6)

    options = {"do_sample": True, **RAW, **options}
    made = llama.generate(**ask(prompts, **options, **ALL, custom_generate=spying))
    lost = 0
    for step, (logits, scores) in enumerate(zip(made.logits, made.scores)):
        before = made.sequences[:, : prompts.shape[1] + step]
        expected = seen[0](before, logits.clone())
        assert torch.equal(scores == -INF, expected == -INF)
        torch.testing.assert_close(scores, expected)
        tokens = fd.sample(expected, seed=6, step=step).tokens
        assert torch.equal(made.sequences[:, before.shape[1]], tokens)
        lost += int((scores == -INF).sum())
    assert (lost > 0) == any(
        name in options for name in ("top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
    ) or ((lost > 0) == (options["top_k"] > 0 or options["top_p"] < 1))
    plain = llama.generate(**ask(prompts, **options, custom_generate=hf.sample, seed=6))
    assert torch.equal(plain, made.sequences)


@pytest.mark.skipif(OLD, reason="transformers 4.57 has no top_h")
def test_top_h_of_the_paper(llama, prompts):
    texts = {}
    for variant in ("hf", "paper"):
        options = ask(
            prompts, do_sample=True, **{**RAW, "top_h": 0.6}, custom_generate=hf.sample, top_h_variant=variant
        )
        made = llama.generate(**options, **ALL, seed=6)
        texts[variant] = made.sequences
        for logits, scores in zip(made.logits, made.scores):
            assert torch.equal(scores, fd.truncate(logits, fd.plan(fd.top_h(0.6, variant=variant))))
    assert not torch.equal(texts["hf"], texts["paper"])


def test_several_texts_for_each_prompt(llama, prompts):
    options = ask(prompts, **MIN_P, num_return_sequences=2, custom_generate=hf.sample, seed=4)
    made = llama.generate(**options)
    repeated = prompts.repeat_interleave(2, 0)
    assert torch.equal(made, judged(llama, repeated, PLAN, 4))
    assert not torch.equal(made[0], made[1])


def test_logits_in_bfloat16_are_drawn_from_as_they_are(prompts):
    """No float32 copy is made, and none makes a difference."""
    model = loops.MODELS["llama"]().to(torch.bfloat16)
    made = model.generate(**ask(prompts, **MIN_P, custom_generate=hf.sample, seed=4))
    assert torch.equal(made, judged(model, prompts, PLAN, 4))


# ---- seeds and streams ---------------------------------------------------------------------------------------------


def test_seed_from_torch(llama, prompts):
    texts = []
    for _ in range(2):
        torch.manual_seed(11)
        texts.append([llama.generate(**ask(prompts, **MIN_P, custom_generate=hf.sample)) for _ in range(2)])
    assert torch.equal(torch.stack(texts[0]), torch.stack(texts[1])) and not torch.equal(*texts[0])


def test_a_row_alone_and_in_a_batch_of_eight(llama):
    """The same seed and stream, the same text; the prompts differ, and so would the texts with another stream."""
    prompts = torch.randint(2, 300, (8, 4), generator=torch.Generator().manual_seed(1))
    whole = llama.generate(**ask(prompts, **MIN_P, custom_generate=hf.sample, seed=9))
    for row in range(8):
        alone = ask(prompts[row : row + 1], **MIN_P, custom_generate=hf.sample, seed=9)
        assert torch.equal(llama.generate(**alone, streams=torch.tensor([row]))[0], whole[row])
        assert row == 0 or not torch.equal(llama.generate(**alone)[0], whole[row])


def test_a_seed_for_each_row(llama, prompts):
    twins, seeds = prompts[[0, 0, 0]], torch.tensor([7, 8, 7])
    made = llama.generate(
        **ask(twins, **MIN_P, custom_generate=hf.sample_with(seed=seeds, streams=torch.zeros(3, dtype=torch.int64)))
    )
    assert torch.equal(made[0], made[2]) and not torch.equal(made[0], made[1])


def test_greedy_rows_in_a_sampled_batch(llama, prompts):
    """Temperature 0 in one row, by a plan with a value for each row."""
    plan = fd.plan(fd.temperature(torch.tensor([0.0, 1.5, 0.0])), fd.min_p(0.01))
    options = ask(prompts, do_sample=True, **RAW, logits_processor=[hf.FusedLogitsProcessor(plan)])
    made = llama.generate(**options, custom_generate=hf.sample, seed=1)
    greedy = llama.generate(**ask(prompts, do_sample=False))
    assert torch.equal(made[[0, 2]], greedy[[0, 2]]) and not torch.equal(made[1], greedy[1])
