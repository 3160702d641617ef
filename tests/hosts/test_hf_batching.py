"""Continuous batching: parameters for each request, called by hand and inside transformers' own manager."""

from __future__ import annotations

import math

import pytest
import torch

import fastdecode as fd
from tests.support import tiny_model
from tests.support.cases import normal

pytest.importorskip("transformers.generation.continuous_batching.cb_logits_processors", reason="transformers 4.57")

from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation import logits_process as theirs
from transformers.generation.continuous_batching import cb_logits_processors as batching

from fastdecode import hf
from fastdecode.hf.batching import PerRequestProcessorList

pytestmark = pytest.mark.usefixtures("one_thread")

INF = math.inf
NEW = 6
PROMPT = [5, 9, 77, 130]
SMALL = {"num_blocks": 8, "page_size": 32, "max_batch_tokens": 64, "allow_block_sharing": False}


class Request:
    """What the processors see of a request."""

    def __init__(self, **kwargs):
        self.state, self.has_new_token, self.logit_processor_kwargs = self, True, kwargs


def processed(processors, requests, x, width=None):
    """What the list does with scores x, its parameters stored as transformers stores them."""
    listed = PerRequestProcessorList(processors)
    storage = torch.zeros(listed.tensors_required, width or len(x), dtype=torch.int32)
    defaults = torch.empty(listed.tensors_required, 1, dtype=torch.int32)
    listed.fill_defaults(defaults)
    storage[:] = defaults
    for request in requests:
        listed.check_kwargs(request.logit_processor_kwargs)
    listed.prepare_tensor_args(requests, storage)
    return listed(torch.zeros(len(x), dtype=torch.int64), x, storage)


VALUES = {
    "temperature": ([0.5, 1.5, 1.0], fd.temperature), "top_k": ([1, 50, 7], fd.top_k), "top_p": ([0.5, 0.9, 0.99], fd.top_p),
    "min_p": ([0.3, 0.01, 0.05], fd.min_p), "typical_p": ([0.95, 0.5, 0.2], fd.typical_p),
    "epsilon_cutoff": ([0.02, 3e-4, 1e-3], fd.epsilon_cutoff), "eta_cutoff": ([2e-3, 1e-4, 0.1], fd.eta_cutoff),
    "top_h": ([0.1, 0.4, 0.8], lambda p: fd.top_h(p, variant="hf")),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_each_request_gets_its_own(name):
    values, rule = VALUES[name]
    x = normal(5, 500, 3.0, 21)
    requests = [Request(**{name: value}) for value in values] + [Request(), Request()]
    made = processed([hf.PerRequestLogitsProcessor(name, values[1])], requests, x, width=9)
    for row, value in enumerate([*values, values[1], values[1]]):
        assert torch.equal(made[row] == -INF, fd.truncate(x[row], fd.plan(rule(value))) == -INF), (row, value)
    assert not torch.equal(made, x) and len({int((row > -INF).sum()) for row in made}) > (name != "temperature")
    assert torch.equal(processed([hf.PerRequestLogitsProcessor(name, values[1])], requests, x)[:3], made[:3])


def test_one_plan_equals_one_after_the_other():
    x = normal(3, 500, 3.0, 22)
    requests = [Request(temperature=0.5, top_k=30), Request(min_p=0.1), Request(temperature=0.0)]
    processors = [hf.PerRequestLogitsProcessor(name) for name in ("temperature", "top_k", "min_p")]
    made = processed(processors, requests, x)
    assert torch.equal(made[0], fd.truncate(x[0], fd.plan(fd.temperature(0.5), fd.top_k(30))))
    assert torch.equal(made[1], fd.truncate(x[1], fd.plan(fd.min_p(0.1))))
    assert torch.equal((made[2] > -INF).nonzero()[0], x[2].argmax(0, keepdim=True))
    best = int(x[1].argmax())
    masked = processed([processors[0], theirs.SuppressTokensLogitsProcessor([best]), *processors[1:]], requests, x)
    assert (masked[:, best] == -INF).all() and made[1, best] > -INF
    x[1, best] = -INF
    assert torch.equal(masked[1], fd.truncate(x[1], fd.plan(fd.min_p(0.1))))


@pytest.mark.parametrize("kwargs", [{"top_k": 0}, {"top_k": -1}, {"top_k": 10**6}, {"top_p": 1.0}, {"min_p": 0}])
def test_what_keeps_everything(kwargs):
    x = normal(1, 500, 3.0, 23)
    (name,) = kwargs
    assert torch.equal(
        processed([hf.PerRequestLogitsProcessor(name, 0.5 if name != "top_k" else 5)], [Request(**kwargs)], x), x
    )


def test_top_p_of_zero_keeps_the_best():
    x = normal(1, 500, 3.0, 24)
    made = processed([hf.PerRequestLogitsProcessor("top_p")], [Request(top_p=0.0)], x)
    assert (made > -INF).nonzero().tolist() == [[0, int(x.argmax())]]


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"one of temperature, .*; got 'seed'"):
        hf.PerRequestLogitsProcessor("seed")
    with pytest.raises(ValueError, match="top_h has no value that switches it off"):
        hf.PerRequestLogitsProcessor("top_h")
    with pytest.raises(ValueError, match="min_p must be"):
        hf.PerRequestLogitsProcessor("min_p", 2.0)
    listed = PerRequestProcessorList([hf.PerRequestLogitsProcessor("top_p")])
    with pytest.raises(ValueError, match="top_p must be"):
        listed.check_kwargs({"top_p": 1.5})
    with pytest.raises(TypeError, match="expected Real"):
        listed.check_kwargs({"top_p": "0.5"})
    with pytest.raises(ValueError, match="Unknown"):
        listed.check_kwargs({"min_p": 0.5})


# ---- inside transformers' manager ------------------------------------------------------------------------------------


@pytest.fixture
def model():
    return tiny_model.llama()


def manager_of(model, **config):
    config = GenerationConfig(max_new_tokens=NEW, eos_token_id=-1, pad_token_id=0, **{"do_sample": True, **config})
    return model.init_continuous_batching(config, ContinuousBatchingConfig(**SMALL))


def run(manager, requests):
    """The outputs of requests, in their order."""
    manager.start()
    try:
        names = [manager.add_request(PROMPT, **kwargs) for kwargs in requests]
        found = {}
        for _ in range(200):
            if len(found) == len(names):
                break
            result = manager.get_result(timeout=1)
            if result is not None and (result.is_finished() or result.error):
                found[result.request_id] = result
    finally:
        manager.stop(block=True)
    return [found[name] for name in names]


def test_inside_a_running_batch(model):
    greedy = tiny_model.llama().generate(torch.tensor([PROMPT]), max_new_tokens=NEW, do_sample=False)[0, len(PROMPT) :]
    manager = hf.per_request(manager_of(model), temperature=1.5, top_k=0, min_p=0.0)
    requests = [
        {"temperature": 0},
        {},
        {"top_k": 1},
        {"top_k": 10**6},
        {"temperature": 0.0, "top_k": -1},
        {"min_p": 2.0},
    ]
    found = run(manager, requests)
    for place in (0, 2, 4):
        assert found[place].generated_tokens == greedy.tolist(), requests[place]
    for place in (1, 3):
        assert len(found[place].generated_tokens) == NEW and found[place].generated_tokens != greedy.tolist()
    assert "min_p must be" in found[5].error


def test_which_processors_a_manager_gets(model):
    def names(manager):
        return [getattr(p, "name", type(p).__name__) for p in manager.logit_processor.logits_processor]

    manager = manager_of(model, temperature=0.7, top_k=20, top_p=0.9, suppress_tokens=[3], renormalize_logits=True)
    assert (
        names(manager)[1:4] == ["TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper"]
        or len(names(manager)) == 5
    )
    hf.per_request(manager, min_p=0.1, top_k=None)
    assert names(manager) == [
        "SuppressTokensLogitsProcessor",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "LogitNormalization",
    ]
    assert manager.logit_processor.tensors_required == 4
    defaults = [p.default for p in manager.logit_processor.logits_processor if hasattr(p, "name")]
    assert defaults == [0.7, 0, 0.9, 0.1]
    assert names(hf.per_request(manager_of(model), temperature=1.0)) == ["temperature"]
    with pytest.raises(ValueError, match="do_sample=True"):
        hf.per_request(manager_of(model, do_sample=False), temperature=1.0)
    with pytest.raises(ValueError, match="got 'sede'"):
        hf.per_request(manager_of(model), sede=1)


def test_a_started_manager_is_refused(model):
    manager = hf.per_request(manager_of(model), temperature=1.0)
    manager.start()
    try:
        with pytest.raises(RuntimeError, match=r"before manager.start"):
            hf.per_request(manager, temperature=1.0)
    finally:
        manager.stop(block=True)


@pytest.mark.parametrize("per_request", [True, False])
def test_our_warpers_inside_a_running_batch(model, per_request, monkeypatch):
    """`supports_continuous_batching`: one parameter for all requests, or, for three of them, transformers' own per-request ones."""
    greedy = tiny_model.llama().generate(torch.tensor([PROMPT]), max_new_tokens=NEW, do_sample=False)[0, len(PROMPT) :]
    ours = [
        hf.FusedLogitsProcessor(fd.plan(fd.temperature(2.0), fd.top_p(0.5))),
        hf.TypicalLogitsWarper(0.99),
        hf.TopKLogitsWarper(1),
    ]
    monkeypatch.setattr(model, "_get_logits_processor", lambda config: theirs.LogitsProcessorList(ours))
    config = ContinuousBatchingConfig(**SMALL, per_request_processors=per_request)
    manager = model.init_continuous_batching(
        GenerationConfig(max_new_tokens=NEW, eos_token_id=-1, pad_token_id=0, do_sample=True), config
    )
    kinds = [type(p) for p in manager.logit_processor.logits_processor]
    assert kinds[:2] == [hf.FusedLogitsProcessor, hf.TypicalLogitsWarper]
    assert kinds[2] is (batching.ContinuousBatchingTopKLogitsWarper if per_request else hf.TopKLogitsWarper)
    assert [found.generated_tokens for found in run(manager, [{}, {}])] == [greedy.tolist()] * 2
