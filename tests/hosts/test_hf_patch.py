"""patch(model): generate() without a change runs our loop, or transformers' own where ours cannot; and no trace remains."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch

from tests.support import tiny_model

pytest.importorskip("transformers")

from transformers.generation import GenerationConfig, StoppingCriteria, StoppingCriteriaList, utils

from fastdecode import hf
from fastdecode.hf import draw
from tests.support.loops import Recorder

pytestmark = pytest.mark.usefixtures("one_thread")

NEW = 10
MIN_P = {"do_sample": True, "temperature": 1.5, "top_k": 0, "min_p": 0.05, "max_new_tokens": NEW}
GREEDY = {"do_sample": False, "max_new_tokens": NEW}


@pytest.fixture(scope="module")
def model():
    return tiny_model.llama()


@pytest.fixture(autouse=True)
def no_trace(model):
    attributes = dict(vars(model))
    yield
    assert vars(model).keys() == attributes.keys() and "generate" not in vars(model)


@pytest.fixture(scope="module")
def prompts():
    return torch.tensor([[5, 9, 77, 130], [8, 2, 250, 4], [61, 61, 3, 299]])


@pytest.fixture
def ran(monkeypatch):
    """How often our loop ran."""
    runs = []
    made = draw.Draw.__init__

    def counted(self, *arguments):
        runs.append(arguments)
        made(self, *arguments)

    monkeypatch.setattr(draw.Draw, "__init__", counted)
    return runs


def test_calls_need_no_change(model, prompts, ran):
    with hf.patch(model, seed=7) as context:
        assert isinstance(context, hf.patch)
        sampled, greedy = model.generate(prompts, **MIN_P), model.generate(prompts, **GREEDY)
        configured = model.generate(prompts, GenerationConfig(**MIN_P, pad_token_id=0))
    assert len(ran) == 3
    assert torch.equal(sampled, model.generate(prompts, **MIN_P, custom_generate=hf.sample, seed=7))
    assert torch.equal(configured, sampled)
    before = len(ran)
    assert torch.equal(greedy, model.generate(prompts, **GREEDY)) and len(ran) == before


UNTOUCHED = {
    "beams": {"num_beams": 3},
    "beam sampling": {"num_beams": 3, "do_sample": True},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "assistant": {"assistant_model": "itself"},
    "custom_generate": {"custom_generate": lambda model, input_ids, **_: input_ids + 1},
}


@pytest.mark.parametrize("options", UNTOUCHED.values(), ids=UNTOUCHED)
def test_what_passes_through(model, prompts, options, ran):
    options = {**GREEDY, **options}
    if "assistant_model" in options:
        options["assistant_model"] = tiny_model.llama()
    prompt = prompts[:1]
    torch.manual_seed(3)
    expected = model.generate(prompt, **options)
    torch.manual_seed(3)
    with hf.patch(model):
        found = model.generate(prompt, **options)
    assert torch.equal(found, expected) and ran == []


def test_an_assistant_may_be_patched(model, prompts, ran):
    assistant = tiny_model.llama()
    expected = model.generate(prompts[:1], **GREEDY, assistant_model=assistant)
    with hf.patch(assistant):
        assert torch.equal(model.generate(prompts[:1], **GREEDY, assistant_model=assistant), expected)
    assert ran == []


def test_models_with_their_own_generate_pass_through(model, prompts, ran, monkeypatch):
    class Other(type(model)):
        def generate(self, *args, **kwargs):
            return super().generate(*args, **kwargs) + 1

    monkeypatch.setattr(model, "__class__", Other)
    expected = model.generate(prompts, **GREEDY)
    with hf.patch(model):
        assert torch.equal(model.generate(prompts, **GREEDY), expected)
    assert ran == []


def test_contexts_nest(model, prompts):
    def text():
        return model.generate(prompts, **MIN_P)

    with hf.patch(model, seed=1):
        outer = text()
        with hf.patch(model, seed=2):
            inner = text()
        assert torch.equal(text(), outer) and not torch.equal(inner, outer)
    again = hf.patch(model, seed=2)
    with again, again:
        assert torch.equal(text(), inner)
    with pytest.raises(KeyError), hf.patch(model):
        raise KeyError


def test_for_good_and_in_any_order(model, prompts, ran):
    first, second = hf.patch(model, seed=1), hf.patch(model, seed=2)
    assert first.start() is first
    second.start()
    first.stop()
    model.generate(prompts, **MIN_P)
    assert len(ran) == 1 and ran[0][3] == 2
    second.stop()
    with pytest.raises(RuntimeError, match=r"stop\(\) needs a start\(\)"):
        second.stop()


def test_threads_have_their_own_contexts(model, prompts, ran):
    """A thread that entered a context uses that one; one that entered none uses the last that was entered by anybody."""
    expected = {seed: model.generate(prompts, **MIN_P, custom_generate=hf.sample, seed=seed) for seed in (1, 2, 3)}
    found, barrier = {}, threading.Barrier(2)

    def inside(seed):
        with hf.patch(model, seed=seed):
            barrier.wait()  # both contexts are open
            found[seed] = [model.generate(prompts, **MIN_P) for _ in range(3)]
            barrier.wait()

    threads = [threading.Thread(target=inside, args=(seed,)) for seed in (1, 2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for seed in (1, 2):
        assert all(torch.equal(text, expected[seed]) for text in found[seed])
    with hf.patch(model, seed=3):
        thread = threading.Thread(target=lambda: found.update({3: model.generate(prompts, **MIN_P)}))
        thread.start()
        thread.join()
    assert torch.equal(found[3], expected[3])


def test_somebody_elses_generate_is_put_back(model, prompts, ran):
    plain = model.generate
    model.generate = lambda *args, **kwargs: plain(*args, **kwargs)
    others = model.generate
    try:
        with hf.patch(model):
            model.generate(prompts, **GREEDY)
            assert len(ran) == 1
        assert vars(model)["generate"] is others
        with hf.patch(model):
            wrapped = model.generate
            model.generate = lambda *args, **kwargs: wrapped(*args, **kwargs)
            later = model.generate
        assert vars(model)["generate"] is later
        expected = plain(prompts, **GREEDY)
        assert torch.equal(model.generate(prompts, **GREEDY), expected) and len(ran) == 1
    finally:
        del model.generate


def test_copies_are_not_patched(model, prompts, ran):
    with hf.patch(model):
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    with torch.no_grad():
        model.lm_head.weight.neg_()
    try:
        texts = [other.generate(prompts, **GREEDY) for other in copies]
        assert torch.equal(*texts) and not torch.equal(texts[0], model.generate(prompts, **GREEDY)) and ran == []
    finally:
        with torch.no_grad():
            model.lm_head.weight.neg_()


def test_streamers_are_heard_once(model, prompts, ran):
    expected, found = Recorder(), Recorder()
    model.generate(prompts[:1], **GREEDY, streamer=expected)
    with hf.patch(model):
        model.generate(prompts[:1], **GREEDY, streamer=found)
    assert found.heard == expected.heard and len(ran) == 1 and len(found.heard) == NEW + 2


def test_users_own_criteria_and_processors_take_part(model, prompts, ran):
    class AfterThree(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= prompts.shape[1] + 3)

    with hf.patch(model):
        made = model.generate(prompts, **GREEDY, stopping_criteria=StoppingCriteriaList([AfterThree()]))
    assert made.shape[1] == prompts.shape[1] + 3 and len(ran) == 1


@pytest.fixture
def one_process():
    """A group of processes of which there is one."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_processes_that_wait_for_each_other(model, prompts, ran, one_process, monkeypatch):
    """With synced_gpus, every step asks the other processes whether they go on, and then goes on as well."""
    asked = []
    reduce = torch.distributed.all_reduce

    def others_take_longer(flag, **options):
        asked.append(float(flag))
        reduce(flag, **options)
        flag += len(asked) % (NEW + 3) > 0  # 0 if everybody has ended: after two steps more than here

    monkeypatch.setattr(torch.distributed, "all_reduce", others_take_longer)
    expected = model.generate(prompts, **GREEDY, synced_gpus=True)
    theirs_asked, asked[:] = list(asked), []
    with hf.patch(model):
        assert torch.equal(model.generate(prompts, **GREEDY, synced_gpus=True), expected)
    assert asked == theirs_asked == [1.0] * NEW + [0.0] * 3 and len(ran) == 1
    assert torch.equal(expected, model.generate(prompts, **GREEDY))


def test_a_warning_blames_the_line_that_called_generate(model, prompts):
    with pytest.warns(UserWarning, match="top_k=50 also runs") as seen, hf.patch(model):
        model.generate(prompts, do_sample=True, min_p=0.05, max_new_tokens=2)
    assert [w.filename for w in seen if "top_k" in str(w.message)] == [__file__]


def test_what_is_no_model(model):
    with pytest.raises(TypeError, match="patch takes a transformers model"):
        hf.patch(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="got 'sede'"):
        hf.patch(model, sede=1)
    assert utils.GenerationMixin.generate.__module__ == "transformers.generation.utils"


def test_the_signature_is_still_generates(model):
    import inspect

    before = inspect.signature(model.generate)
    with hf.patch(model):
        assert inspect.signature(model.generate) == before
