"""generate(custom_generate=fastdecode.hf.sample) against transformers' own loop.

Greedy output is compared as it is. A sampled text is judged by transformers' loop with the draws put into it: under
`do_sample=False`, `SamplerLogitsProcessor(plan)` (judged in test_hf_generate.py) makes that loop emit what it drew.
"""

from __future__ import annotations

import math
import sys
import warnings

import pytest
import tiny_model
import torch

import fastdecode as fd

transformers = pytest.importorskip("transformers")

from transformers.generation import logits_process as theirs  # noqa: E402

from fastdecode import hf  # noqa: E402
from fastdecode.hf import stages  # noqa: E402

INF = math.inf
NEW = 12
RAW = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
ALL = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_attentions": True,
       "output_hidden_states": True}  # fmt: skip
MIN_P = {"do_sample": True, **RAW, "temperature": 1.5, "min_p": 0.05}
PLAN = fd.plan(fd.temperature(1.5), fd.min_p(0.05))
OLD = int(transformers.__version__.split(".")[0]) < 5


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models():
    return {"llama": tiny_model.llama(), "bart": tiny_model.bart()}


@pytest.fixture
def llama(models):
    return models["llama"]


@pytest.fixture(scope="module")
def prompts():
    return torch.tensor([[5, 9, 77, 130], [8, 2, 250, 4], [61, 61, 3, 299]])


def ask(prompts, **options):
    return {"inputs": prompts, "attention_mask": torch.ones_like(prompts), "max_new_tokens": NEW, **options}


def end_of(model, prompts, row: int, position: int) -> int:
    """A token that ends this row at this place of its greedy text."""
    greedy = model.generate(**ask(prompts, do_sample=False))
    return int(greedy[row, (0 if model.config.is_encoder_decoder else prompts.shape[1]) + position])


def same(ours, expected) -> None:
    """Two outputs of generate() are equal, tensor by tensor; caches by their length."""
    if torch.is_tensor(expected):
        assert torch.equal(ours, expected)
        return
    assert list(ours) == list(expected) and len(expected) > 1
    for name, value in expected.items():
        if name == "past_key_values":
            assert ours[name].get_seq_length() == value.get_seq_length() > 0
        else:
            leaves = [torch.utils._pytree.tree_leaves(x) for x in (ours[name], value)]
            assert len(leaves[0]) == len(leaves[1]) > 0, name
            assert all(torch.equal(a, b) for a, b in zip(*leaves)), name


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


def test_greedy_goes_on_from_a_cache(llama, prompts):
    made = []
    for loop in ({}, {"custom_generate": hf.sample}):
        cache = transformers.DynamicCache(config=llama.config)
        first = llama.generate(**ask(prompts, do_sample=False, past_key_values=cache, **loop))
        made.append(llama.generate(**ask(first, do_sample=False, past_key_values=cache, **loop)))
        assert cache.get_seq_length() == made[-1].shape[1] - 1
    same(made[1], made[0])


# ---- sampling ------------------------------------------------------------------------------------------------------


def judged(model, prompts, plan, seed, **options):
    """What transformers' loop writes with the draws of fd.sample."""
    drawn = hf.SamplerLogitsProcessor(plan, seed=seed)
    return model.generate(**ask(prompts, do_sample=False, logits_processor=[drawn], **options))


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
    model = tiny_model.llama().to(torch.bfloat16)
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


# ---- what comes back besides the text --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_statistics(models, prompts, kind):
    model = models[kind]
    start = 1 if kind == "bart" else prompts.shape[1]
    end = int(judged(model, prompts, PLAN, 4)[1, start + 3])
    options = ask(prompts, **MIN_P, eos_token_id=end, custom_generate=hf.sample, seed=4)
    made = model.generate(**options, **ALL, stats=True)
    assert isinstance(made, transformers.generation.GenerateEncoderDecoderOutput if kind == "bart" else transformers.generation.GenerateDecoderOnlyOutput)  # fmt: skip
    tokens, width = made.sequences[:, start:], made.sequences.shape[1] - start
    assert torch.equal(made.stats.tokens, tokens)
    ended = 0
    for step, logits in enumerate(made.logits):
        expected = fd.sample(logits, PLAN, seed=4, step=step, stats=True)
        for row in range(len(prompts)):
            over = end in tokens[row, :step].tolist()
            ended += over
            for name in ("logprobs", "kept", "raw_logprobs", "entropy", "kept_mass", "max_prob", "margin"):
                found = getattr(made.stats, name)
                assert found.shape == (3, width)
                assert found[row, step] == (0 if over else getattr(expected, name)[row]), name
    assert ended > 0
    some = model.generate(**options, return_dict_in_generate=True, stats=("entropy",))
    assert torch.equal(some.stats.entropy, made.stats.entropy) and some.stats.margin is None
    assert "stats" not in model.generate(**options, return_dict_in_generate=True)


def test_statistics_of_greedy_text(llama, prompts):
    options = ask(prompts, do_sample=False, return_dict_in_generate=True, output_logits=True)
    made = llama.generate(**options, custom_generate=hf.sample, stats=("raw_logprobs",))
    assert torch.equal(made.sequences, llama.generate(**options).sequences)
    for step, logits in enumerate(made.logits):
        expected = logits.log_softmax(1).gather(1, made.stats.tokens[:, step, None])[:, 0]
        torch.testing.assert_close(made.stats.raw_logprobs[:, step], expected)


class Recorder:
    def __init__(self):
        self.heard = []

    def put(self, tokens):
        self.heard.append(tokens.tolist())

    def end(self):
        self.heard.append("end")


@pytest.mark.parametrize("every", [1, 5])
def test_a_streamer_hears_what_it_hears_from_transformers(llama, prompts, every):
    options = ask(prompts[:1], do_sample=False, eos_token_id=end_of(llama, prompts, 0, 6))
    theirs_heard, ours_heard = Recorder(), Recorder()
    llama.generate(**options, streamer=theirs_heard)
    llama.generate(**options, custom_generate=hf.sample_with(streamer=ours_heard, check_every=every))
    assert ours_heard.heard == theirs_heard.heard and len(ours_heard.heard) == 1 + 7 + 1


# ---- looking at the device now and then ------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [2, 3, 5, 100])
@pytest.mark.parametrize("options", [{"do_sample": False}, MIN_P], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_steps_in_vain_leave_no_trace(models, prompts, kind, options, every):
    model = models[kind]
    start = 1 if kind == "bart" else prompts.shape[1]
    loop = {"custom_generate": hf.sample, "seed": 4}
    end = int(model.generate(**ask(prompts, **options, **loop))[0, start + 3])
    for row in (0, [0, 1, 2]):
        asked = ask(prompts[row].view(-1, 4), **options, **ALL, **loop, eos_token_id=end, stats=True)
        once, late = model.generate(**asked), model.generate(**asked, check_every=every)
        drawn = [dict(made) for made in (late, once)]
        stats = [made.pop("stats") for made in drawn]
        same(*drawn)
        assert torch.equal(stats[0].kept, stats[1].kept)
    assert once.sequences.shape[1] <= start + NEW


def test_a_cache_that_cannot_be_shortened_is_not_overrun(llama, prompts):
    """A static cache that the user keeps: its length must be right, so every step is looked at."""
    end = end_of(llama, prompts, 0, 3)
    lengths = []
    for every in (1, 5):
        cache = transformers.StaticCache(config=llama.config, max_cache_len=40)
        llama.generate(
            **ask(prompts[:1], do_sample=False, eos_token_id=end, past_key_values=cache),
            custom_generate=hf.sample, check_every=every,
        )  # fmt: skip
        lengths.append(int(cache.get_seq_length()))
    assert lengths == [prompts.shape[1] + 3] * 2


class Synchronisations(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what would make the host wait for a GPU, outside the model's forward pass: scalars and whole tensors that are
    read, and results whose size depends on values."""

    def __init__(self, monkeypatch, model):
        super().__init__()
        self.count, self.inside = 0, False
        for name in (
            "item",
            "tolist",
            "cpu",
            "numpy",
            "nonzero",
            "__bool__",
            "__int__",
            "__float__",
            "__index__",
            "__array__",
        ):
            monkeypatch.setattr(torch.Tensor, name, self._counting(getattr(torch.Tensor, name)))
        forward = model.forward

        def silently(*args, **kwargs):
            before, self.inside = self.inside, True
            try:
                return forward(*args, **kwargs)
            finally:
                self.inside = before

        silently.__signature__ = __import__("inspect").signature(forward)
        monkeypatch.setattr(model, "forward", silently)

    def _counting(self, method):
        def counted(*args, **kwargs):
            before = self.inside
            self.count += not before
            self.inside = True  # one call may go through several of them
            try:
                return method(*args, **kwargs)
            finally:
                self.inside = before

        return counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self.inside and func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{"do_sample": False}, MIN_P], ids=["greedy", "sampled"])
def test_one_synchronisation_for_several_tokens(llama, prompts, options, monkeypatch):
    """Counted on the CPU, where the loop runs the same code: what a longer text costs beyond a shorter one."""
    counts = {}
    for every in (1, 8):
        for new in (8, 40):
            with monkeypatch.context() as patch, Synchronisations(patch, llama) as mode:
                asked = ask(prompts, **options, eos_token_id=299) | {"max_new_tokens": new, "min_new_tokens": None}
                llama.generate(**asked, custom_generate=hf.sample_with(seed=4, check_every=every))
            counts[every, new] = mode.count
    theirs_own = 32 if OLD else 0  # 4.57 looks at cache_position in every step
    here = 2 if options["do_sample"] else 1  # with every=1 on the CPU, where looking is free: the rows and their status
    assert counts[1, 40] - counts[1, 8] == 32 * here + theirs_own
    assert counts[8, 40] - counts[8, 8] == 32 / 8 + theirs_own


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_one_synchronisation_for_several_tokens_on_a_gpu(prompts):
    """Default options; torch itself reports every synchronisation."""
    model, device_prompts = tiny_model.llama(eos=299).cuda(), prompts.cuda()
    counts = []
    for new in (8, 40):
        asked = ask(device_prompts, **MIN_P, custom_generate=hf.sample, seed=4) | {"max_new_tokens": new}
        model.generate(**asked)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                model.generate(**asked)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(w.message) for w in seen))
    assert 0 < counts[1] - counts[0] <= 32 / 8


# ---- what is refused, and what is said -------------------------------------------------------------------------------


class Breaker(theirs.LogitsProcessor):
    def __init__(self, row, value, length):
        self.row, self.value, self.length = row, value, length

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] >= self.length:
            scores[self.row] = self.value
        return scores


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("value", [math.nan, -INF])
def test_a_row_that_cannot_be_sampled(llama, prompts, value, every):
    options = ask(prompts, **MIN_P, custom_generate=hf.sample_with(check_every=every, seed=1))
    with pytest.raises(ValueError, match="rows that do not: 1"):
        llama.generate(**options, logits_processor=[Breaker(1, value, 6)])


def test_a_row_that_has_ended_may_be_anything(llama, prompts):
    options = ask(prompts, **MIN_P, custom_generate=hf.sample, seed=4)
    free = llama.generate(**options)
    end = int(free[1, prompts.shape[1]])
    made = llama.generate(**options, eos_token_id=end, logits_processor=[Breaker(1, math.nan, prompts.shape[1] + 1)])
    assert (made[1, prompts.shape[1] + 1 :] == 0).all() and torch.equal(made[0], free[0, : made.shape[1]])


def test_logits_that_come_back_are_not_written_to(llama, prompts):
    """Even by a processor that writes in place, as `Breaker` does."""
    options = ask(prompts, do_sample=False, return_dict_in_generate=True, output_logits=True, custom_generate=hf.sample)
    made = llama.generate(**options, logits_processor=[Breaker(1, 0.0, 0)])
    assert all((logits[1] != 0).any() for logits in made.logits) and (made.sequences[1, prompts.shape[1] :] == 0).all()


def test_bad_arguments(llama, prompts, monkeypatch):
    options = ask(prompts, **MIN_P)
    with pytest.raises(ValueError, match="return_dict_in_generate=True"):
        llama.generate(**options, custom_generate=hf.sample, stats=True)
    for every in (0, 2.0, True):
        with pytest.raises(ValueError, match="check_every must be"):
            llama.generate(**options, custom_generate=hf.sample, check_every=every)
    with pytest.raises(TypeError, match=r"sample_with takes .*streamer; got 'sede'"):
        hf.sample_with(sede=1)
    with pytest.raises(ValueError, match="seed must be"):
        llama.generate(**options, custom_generate=hf.sample, seed=torch.tensor([1, 2]))
    for mode, more in (("beam_search", {"num_beams": 3}), ("assisted_generation", {"prompt_lookup_num_tokens": 2})):
        with pytest.raises(ValueError, match=f"one beam; got {mode}"):
            llama.generate(**ask(prompts[:1], **more), custom_generate=hf.sample)
    monkeypatch.setattr(type(llama), "_sample", lambda *_: None)
    with pytest.raises(ValueError, match="LlamaForCausalLM has another one"):
        llama.generate(**options, custom_generate=hf.sample)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"min_p": 0.05}, "min_p"), ({"typical_p": 0.9}, "typical_p"), ({"min_p": 0.05, "top_k": 0}, None), ({}, None),
     ({"min_p": 0.05, "top_k": 30}, None), ({"top_p": 0.9}, None), ({"min_p": 0.05, "do_sample": False}, None),
     ({"logits_processor": [hf.FusedLogitsProcessor(PLAN)]}, "FusedLogitsProcessor")],
)  # fmt: skip
def test_the_default_top_k_is_reported(llama, prompts, options, named):
    """A warning that blames the line which called generate(); Python shows it once for each."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(2):
            llama.generate(**ask(prompts, **{"do_sample": True, **options}, custom_generate=hf.sample))
    ours = [w for w in seen if "top_k=50 also runs" in str(w.message)]
    assert len(ours) == (named is not None)
    if named:
        assert named in str(ours[0].message) and ours[0].filename == __file__
        sys.modules[__name__].__dict__.get("__warningregistry__", {}).clear()


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
    assert repr(found.last) == "plan(temperature(0.5), top_h(0.4), typical(0.9, min_tokens_to_keep=2), top_a(0.2))"
    assert found.normalize is None


def test_every_warper_of_transformers_is_read():
    made = [
        theirs.TemperatureLogitsWarper(0.5), theirs.TopKLogitsWarper(5, min_tokens_to_keep=7), theirs.TopPLogitsWarper(0.9),
        theirs.TopPLogitsWarper(0.0, min_tokens_to_keep=3), theirs.MinPLogitsWarper(0.1), theirs.TypicalLogitsWarper(0.9),
        theirs.EpsilonLogitsWarper(0.25), theirs.EtaLogitsWarper(0.25, device="cpu"),
        *([] if OLD else [theirs.TopHLogitsWarper(0.5)]),
    ]  # fmt: skip
    expected = ["temperature(0.5)", "top_k(7)", "top_p(0.9)", "top_k(3)", "min_p(0.1)", "typical(0.9)", "epsilon(0.25)", "eta(0.25)",
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
