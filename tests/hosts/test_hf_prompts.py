"""generate_temperatures reads what generate reads: every input reaches the model, or is refused by its name before it runs."""

from __future__ import annotations

import functools

import pytest
import torch

import fastdecode as fd
from fastdecode.scaling import texts
from tests.support import tiny_model

transformers = pytest.importorskip("transformers")

from fastdecode import hf  # noqa: E402
from fastdecode.hf.written import Ends  # noqa: E402
from tests.hosts.test_hf_architectures import inputs_of, made  # noqa: E402
from tests.support.loops import NEW, OLD, ask, end_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def greedy(model, inputs, **options):
    return hf.generate_temperatures(model, inputs, [0.0], 1, seed=1, eos_token_id=[], max_new_tokens=NEW, **options)


def tokens_of(made_texts: list[texts.Text]) -> list[list[int]]:
    return [text.tokens for text in made_texts]


def shapes_of(model, monkeypatch) -> list[tuple[int, ...]]:
    """Filled with the shapes of the ids that the model is called with."""
    shapes: list[tuple[int, ...]] = []
    forward_of_class = type(model).forward

    @functools.wraps(forward_of_class)  # its signature says what the model takes
    def spying(self, *args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward_of_class(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", spying)
    return shapes


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_vl"])
def test_two_images_with_the_same_words_get_two_texts(name):
    model, inputs = made(name), inputs_of(name)
    pixels = inputs["pixel_values"].chunk(2)
    found = []
    for i in range(2):
        alone = {key: value[i : i + 1] for key, value in inputs.items()} | {"pixel_values": pixels[i]}
        found += tokens_of(hf.generate_temperatures(model, alone, [0.0], 1, eos_token_id=[], max_new_tokens=NEW))
        expected = model.generate(**alone, do_sample=False, max_new_tokens=NEW)
        assert found[i] == expected[0, -NEW:].tolist()
    assert found[0] != found[1]


@pytest.mark.skipif(OLD, reason="4.57 keeps the offsets of positions in the model")
def test_a_model_that_sees_shares_the_prefill_of_words(monkeypatch):
    model = made("qwen2_vl")
    ids = torch.tensor([[5, 17, 60, 33], [9, 40, 8, 8]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    expected = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW)[:, 4:].tolist()
    shapes = shapes_of(model, monkeypatch)
    made_texts = hf.generate_temperatures(
        model, {"input_ids": ids, "attention_mask": mask}, [0.0], 3, eos_token_id=expected[0][3], max_new_tokens=NEW
    )
    assert shapes[0] == (2, 4) and shapes[1] == (6, 1)
    assert [text.tokens == expected[text.prompt][: len(text.tokens)] for text in made_texts] == [True] * 6


# ---- states ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(OLD, reason="4.57 has no states in its DynamicCache")
@pytest.mark.parametrize("name", ["mamba", "jamba", "lfm2", "qwen3_next", "falcon_h1"])
def test_states_are_copied_behind_one_prefill(name, monkeypatch):
    """Rows of different temperatures go different ways, each as if it were alone."""
    model = made(name)
    ids = torch.tensor([[5, 17, 60, 33, 2, 71]])
    options = {"plan": fd.plan(fd.min_p(0.05)), "seed": 3, "eos_token_id": [], "max_new_tokens": NEW}
    shapes = shapes_of(model, monkeypatch)
    together = hf.generate_temperatures(model, ids, [0.7, 1.5], 3, **options)
    assert shapes[0] == (1, 6) and shapes[1] == (6, 1)
    assert len(set(map(tuple, tokens_of(together)))) == 6
    for text in together[::2]:
        alone = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0, temperature=text.temperature,
            min_p=0.05, max_new_tokens=NEW, custom_generate=hf.sample, seed=3, streams=torch.tensor([text.stream]),
        )  # fmt: skip
        assert text.tokens == alone[0, 6:].tolist()


def test_a_cache_that_is_left_empty_is_noticed(monkeypatch):
    """Recurrent Gemma has a cache for its states, and keeps them elsewhere: each row reads the prompt."""
    model = made("recurrent_gemma")
    shapes = shapes_of(model, monkeypatch)
    greedy(model, torch.tensor([[5, 17, 60]]))
    hf.generate_temperatures(model, torch.tensor([[5, 17, 60]]), [0.0], 2, eos_token_id=[], max_new_tokens=3)
    assert (2, 3) in shapes


# ---- other inputs ----------------------------------------------------------------------------------------------------


class Prompted(torch.nn.Module):
    """A model with virtual tokens before every prompt, as prompt tuning does it: around generate, and into its steps."""

    def __init__(self, model, virtual: torch.Tensor):
        super().__init__()
        self.base, self.virtual = model, virtual
        self.config, self.generation_config, self.device = model.config, model.generation_config, model.device
        self.prepare = model.prepare_inputs_for_generation

    def forward(self, *args, **kwargs):
        return self.base(*args, **kwargs)

    def prepared(self, input_ids, **kwargs):
        """Positions are the model's own: those of the virtual tokens and what follows them."""
        first = (
            kwargs["is_first_iteration"]
            if not OLD and "is_first_iteration" in kwargs
            else input_ids.shape[1] == self.length
        )
        kwargs.pop("position_ids", None)
        inputs = self.prepare(input_ids, **kwargs)
        inputs.pop("position_ids", None)
        inputs.pop("cache_position", None)
        inputs["attention_mask"] = None
        if first:
            words = self.base.get_input_embeddings()(inputs.pop("input_ids"))
            inputs["inputs_embeds"] = torch.cat([self.virtual.expand(len(words), -1, -1), words], dim=1)
        return inputs

    def generate(self, **kwargs):
        self.length = kwargs["input_ids"].shape[1]
        self.base.prepare_inputs_for_generation = self.prepared
        try:
            return self.base.generate(**kwargs)
        finally:
            del self.base.prepare_inputs_for_generation


def test_a_tuned_prompt(llama, prompts):
    virtual = 2 * torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    model = Prompted(llama, virtual)
    options = {"attention_mask": torch.ones_like(prompts), "do_sample": False, "max_new_tokens": NEW}
    expected = model.generate(input_ids=prompts, **options)[:, prompts.shape[1] :]
    assert not torch.equal(expected, llama.generate(prompts, **options)[:, prompts.shape[1] :])
    assert tokens_of(greedy(model, prompts)) == expected.tolist()
    three = hf.generate_temperatures(model, prompts, [0.0], 3, eos_token_id=[], max_new_tokens=NEW)
    assert tokens_of(three) == expected.repeat_interleave(3, 0).tolist()


def test_embeddings(llama, prompts):
    embedded = llama.get_input_embeddings()(prompts).detach()
    mask = torch.ones_like(prompts)
    made_texts = hf.generate_temperatures(
        llama, {"inputs_embeds": embedded, "attention_mask": mask}, [0.0], 2, eos_token_id=[], max_new_tokens=NEW
    )
    expected = llama.generate(**ask(prompts, do_sample=False))[:, prompts.shape[1] :]
    assert tokens_of(made_texts) == expected.repeat_interleave(2, 0).tolist()


def test_types_of_tokens_reach_the_model():
    """GPT-2 embeds them like tokens, and in a text they go on as they ended."""
    model, ids = made("gpt2"), torch.tensor([[5, 17, 60, 33]])
    found = []
    for kinds in (torch.tensor([[3, 3, 9, 9]]), torch.tensor([[50, 50, 20, 20]])):
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), token_type_ids=kinds, do_sample=False, max_new_tokens=NEW
        )
        inputs = {"input_ids": ids, "token_type_ids": kinds}
        ours = hf.generate_temperatures(model, inputs, [0.0], 2, eos_token_id=[], max_new_tokens=NEW)
        assert tokens_of(ours) == [expected[0, 4:].tolist()] * 2
        flat = {name: value[0] for name, value in inputs.items()}
        assert tokens_of(greedy(model, flat)) == [expected[0, 4:].tolist()]
        found += tokens_of(ours)
    assert found[0] != found[2]


@pytest.mark.parametrize("name", ["pixel_values", "token_type_ids", "past_key_values", "cache", "labels", "temperature", "streamer",
                                  "max_new_tokens", "tokenizer", "assistant_model", "num_beams"])  # fmt: skip
def test_what_the_model_does_not_take_is_refused_by_name(llama, prompts, name, monkeypatch):
    shapes = shapes_of(llama, monkeypatch)
    with pytest.raises(ValueError, match=name):
        greedy(llama, {"input_ids": prompts, name: torch.ones(3, 4)})
    assert not shapes, "before anything is generated"


def test_no_prompt(llama):
    for bad in ({}, {"attention_mask": None}, None, {"input_ids": [[1, 2]]}):
        with pytest.raises(ValueError, match="inputs must be a prompt"):
            greedy(llama, bad)


def test_a_loop_of_its_own(llama, prompts, monkeypatch):
    class Own(type(llama)):
        def _sample(self, *args, **kwargs):
            raise AssertionError

    monkeypatch.setattr(llama, "__class__", Own)
    with pytest.raises(ValueError, match="own loop; Own has another"):
        greedy(llama, prompts)
    monkeypatch.setattr(Own, "generate", lambda self, **kwargs: None)
    with pytest.raises(ValueError, match="ignores custom_generate"):
        greedy(llama, prompts)


def test_rows_that_cannot_leave_are_not_drawn_any_more(models, prompts):
    """Of an encoder's model the rows stay; what they draw after their end is nobody's."""
    bart = models["bart"]
    end = end_of(bart, prompts, 0, 3)
    made_texts = hf.generate_temperatures(bart, prompts, [0.0, 2.0], 2, seed=5, eos_token_id=end, max_new_tokens=NEW)
    free = hf.generate_temperatures(bart, prompts, [0.0, 2.0], 2, seed=5, eos_token_id=[], max_new_tokens=NEW)
    assert {text.end for text in made_texts} == {"eos", "length"}
    for text, whole in zip(made_texts, free, strict=True):
        n = whole.tokens.index(end) + 1 if end in whole.tokens else NEW
        assert text.tokens == whole.tokens[:n]
        assert n == NEW or abs(text.logprob) < abs(whole.logprob) or text.temperature == 0


def test_the_config_of_the_model_does_not_interfere(llama, prompts, monkeypatch):
    expected = tokens_of(greedy(llama, prompts))
    for name, value in {"num_beams": 3, "num_return_sequences": 2, "use_cache": False, "stop_strings": ["x"],
                        "cache_implementation": "static", "return_dict_in_generate": True}.items():  # fmt: skip
        monkeypatch.setattr(llama.generation_config, name, value)
    shapes = shapes_of(llama, monkeypatch)
    assert tokens_of(greedy(llama, prompts)) == expected
    assert [
        text.tokens for text in hf.generate_temperatures(llama, prompts, [0.0], 2, eos_token_id=[], max_new_tokens=NEW)
    ] == [tokens for tokens in expected for _ in range(2)]
    assert (6, 4) not in shapes, "each prompt was read once"


@pytest.mark.skipif(OLD, reason="4.57 reads its chunks in a way of its own")
def test_chunks_of_a_prompt_are_read_one_by_one(llama, prompts, monkeypatch):
    expected = tokens_of(greedy(llama, prompts))
    monkeypatch.setattr(llama.generation_config, "prefill_chunk_size", 2)
    shapes = shapes_of(llama, monkeypatch)
    assert tokens_of(greedy(llama, prompts)) == expected
    assert shapes[:2] == [(3, 2), (3, 2)]


# ---- stop strings ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tiny_model.save(tmp_path_factory.mktemp("tiny"))
    load = transformers.AutoModelForCausalLM, transformers.AutoTokenizer
    model, tokenizer = (kind.from_pretrained(folder) for kind in load)
    tokenizer.add_special_tokens({"additional_special_tokens": ["lamp", "boat"]})
    return model, tokenizer


def test_a_stop_string_that_is_a_special_token(words):
    model, tokenizer = words
    options = {"tokenizer": tokenizer, "max_new_tokens": 30, "seed": 3, "eos_token_id": []}
    free = hf.generate_temperatures(model, "the old keeper", [5.0], 12, **options)
    for stops in (["lamp"], ["lamp", "boat"], "amp"):
        stopped = hf.generate_temperatures(model, "the old keeper", [5.0], 12, stop_strings=stops, **options)
        ids = [tokenizer.convert_tokens_to_ids(name) for name in ("lamp", "boat")][: 2 if len(stops) == 2 else 1]
        assert any(text.end == "stop" for text in stopped)
        for text, whole in zip(stopped, free, strict=True):
            n = next((i + 1 for i, token in enumerate(whole.tokens) if token in ids), 30)
            assert text.tokens == whole.tokens[:n] and (text.end == "stop") == (whole.tokens[n - 1] in ids)
            before = text.tokens[:-1] if text.end == "stop" else text.tokens
            assert text.text.strip() == tokenizer.decode(before, skip_special_tokens=True).strip()
            assert "lamp" not in text.text


def test_what_comes_before_a_stop_string(words):
    _, tokenizer = words
    ids = tokenizer("the old boat saw young lamp sky", return_tensors="pt").input_ids[0].tolist()
    for stop, text in {"lamp": "the old saw young", "w you": "the old sa", "boat saw": "the old", "the": ""}.items():
        assert Ends(set(), [stop], tokenizer).before_stop(ids).strip() == text
