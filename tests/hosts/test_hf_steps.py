"""What fastdecode.hf.sample gives besides the text, how often it waits for the device, and what it refuses."""

from __future__ import annotations

import inspect
import math
import warnings

import pytest
import torch

import fastdecode as fd

transformers = pytest.importorskip("transformers")

from transformers.generation import logits_process as theirs  # noqa: E402

from fastdecode import hf  # noqa: E402
from tests.support import loops  # noqa: E402
from tests.support.loops import ALL, CACHE, INF, MIN_P, NEW, OLD, PLAN, Recorder, ask, end_of, judged, same  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_statistics_change_no_greedy_text(llama, prompts):
    """Not even where a row is NaN, which greedy decoding does not mind."""
    options = ask(prompts, do_sample=False, return_dict_in_generate=True, logits_processor=[Breaker(1, math.nan, 6)])
    made = llama.generate(**options, custom_generate=hf.sample, stats=True)
    assert torch.equal(made.sequences, llama.generate(**options).sequences)
    assert made.stats.status[1].any() and not made.stats.status[[0, 2]].any()


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
            **ask(prompts[:1], do_sample=False, eos_token_id=end, **{CACHE: cache}),
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

        silently.__signature__ = inspect.signature(forward)
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
    model, device_prompts = loops.MODELS["llama"](eos=299).cuda(), prompts.cuda()
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
