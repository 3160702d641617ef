"""Every option of every command with every hostile value: an answer or one sentence on stderr, and never a traceback.

The options are read off the parser, so a new one is tried too. Nothing is loaded but a tiny model, and the pictures and the statistics
that a request would cost are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastdecode import dispatch, verify
from fastdecode.cli import command as cli
from fastdecode.cli import generate, plot
from tests.support import tiny_model

HOSTILE = [
    "", " ", "0", "-0", "-1", "+1", "1_0", "01", "0x10", "1e3", "1.5", "nan", "inf", "-inf", "1e400", "1e-400", "1e-40", "3e38", "9" * 400,
    "9" * 5000, "18446744073709551615", "18446744073709551616", "-9223372036854775809", "4294967296", "٣", "½", "None", "True",
    ",", "1,", "0,0", "1,nan", ",".join("1" * 257), "--", "-", "%s", "{}", "a\nb", "\udcff", "💥", "[bold]", "cpu", "hf", "x" * 5000,
    ".", "/", "/dev/null", "/dev/null/x", "/proc/x", "no/such", "a:b", ":", "..a:b", "os:path", "os:getcwd", "os:abort ",
]  # fmt: skip

# Whether a temperature this far from 1 can be asked for is for the rules to say, and their tests.
BEGINNINGS = {
    "generate": ["generate", "the sea", "--max-new-tokens", "2", "--seed", "1"],
    "plot": ["plot", "--temperatures", "1", "--min-p", "0.1"],
    "verify": ["verify", "--quick"],
    "doctor": ["doctor"],
}


def options_of(command: str) -> list[argparse.Action]:
    parsers = next(a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    assert parsers.keys() == BEGINNINGS.keys()
    return [action for action in parsers[command]._actions if action.dest != "help"]


def tried(arguments: list[str], capsys) -> tuple[int, str]:
    """The exit code and what stderr says; anything but an answer or a sentence fails the test."""
    try:
        code = cli.main(arguments)
    except SystemExit as left:
        code = left.code
    told = capsys.readouterr().err
    shown = [word[:80] for word in arguments]
    if code == 2:
        assert told.startswith("fastdecode: ") and told.endswith(".\n") and told.count("\n") == 1, (shown, told)
        assert len(told) < 600 and "tensor of" not in told, (
            shown,
            told,
        )
    else:
        assert code == 0 and told == "", (shown, code, told)
    return code, told


@pytest.fixture
def cheap(monkeypatch, tmp_path, loaded):
    def load(model, gguf):
        generate._locate(model, gguf)  # what is wrong with the names themselves
        return loaded

    monkeypatch.setattr(generate, "load", load)
    monkeypatch.setattr(plot, "save", lambda figure, path: None)
    monkeypatch.setattr(verify, "ask", lambda *_: [])
    monkeypatch.chdir(tmp_path)
    np.save("row.npy", np.random.default_rng(0).normal(size=26).astype(np.float32))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return generate.load(str(tiny_model.save(tmp_path_factory.mktemp("tiny"))), None)


def spelled(action: argparse.Action, value: str) -> list[str]:
    if not action.option_strings:
        return [] if value.startswith("-") else [value]
    return [action.option_strings[-1]] if action.nargs == 0 else [f"{action.option_strings[-1]}={value}"]


@pytest.mark.parametrize(
    ("command", "option"),
    [(command, action.dest) for command in BEGINNINGS for action in options_of(command)],
)
def test_hostile_values(command, option, cheap, capsys, one_thread):
    action = next(action for action in options_of(command) if action.dest == option)
    codes = set()
    for value in HOSTILE:
        beginning = list(BEGINNINGS[command])
        if command == "plot" and option not in ("logits", "text"):
            beginning += ["--logits", "row.npy"]
        if command == "generate" and option == "prompt":
            beginning.remove("the sea")
        if option in ("tau", "thinking"):
            beginning += ["--soft", "gumbel"]
        if option == "save":
            beginning += ["--temperatures", "1"]
        if option.endswith("_variant"):
            beginning += [f"--{option.removesuffix('_variant').replace('_', '-')}", "0.5"]
        codes.add(tried([*beginning, *spelled(action, value)], capsys)[0])
    assert codes <= {0, 2} and (2 in codes or action.nargs == 0 or option in ("text", "prompt")), "nothing was hostile"


@pytest.mark.parametrize("arguments", [
    ["no-such-command"], ["generate"], ["generate", "a", "b"], ["--no-such-option"], ["plot", "a", "b"], ["doctor", "x"], ["verify", "x"],
    ["generate", "a", "--soft"], ["generate", "a", "--compare=1"], ["a\nb"], ["\udcff"], ["generate", "\n"], [""],
])  # fmt: skip
def test_hostile_commands(arguments, cheap, capsys):
    tried(arguments, capsys)


# ---- files of logits -----------------------------------------------------------------------------------------------------

ROWS = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
ARRAYS = {
    "nan": ROWS * np.nan, "inf": np.where(ROWS > 1, np.inf, ROWS), "empty rows": ROWS[:, :0], "no rows": ROWS[:0], "number": ROWS[0, 0],
    "nothing": np.full((2, 5), -np.inf), "3-D": ROWS.reshape(3, 5, 10), "complex": ROWS * 1j, "bool": ROWS > 0, "words": np.array(["a", "b"]),
    "objects": np.array([{}, None]), "beyond float32": ROWS.astype(np.float64) * 1e300, "fields": np.zeros(3, dtype=[("a", "f4")]),
}  # fmt: skip
GOOD = {"one": ROWS, "row": ROWS[0], "half": ROWS.astype(np.float16), "double": ROWS.astype(np.float64), "big": ROWS.astype(">f4"),
        "whole": (ROWS * 10).astype(np.int64), "one token": ROWS[:, :1], "flat": ROWS * 0, "holes": np.where(ROWS > 1, -np.inf, ROWS)}  # fmt: skip


def test_files_of_logits(cheap, capsys):
    for name, array in GOOD.items():
        np.save(f"{name}.npy", array)
        assert tried(["plot", "--logits", f"{name}.npy"], capsys) == (0, ""), name
    whole = Path("one.npy").read_bytes()
    for name, array in ARRAYS.items():
        np.save(f"{name}.npy", array, allow_pickle=True)
    np.savez("several.npz", ROWS)
    others = {"cut.npy": whole[:300], "cut-header.npy": whole[:20], "nothing.npy": b"", "junk.npy": b"junk" * 99,
              "zip.npy": Path("several.npz").read_bytes(), "nothing.safetensors": b"", "junk.safetensors": b"junk" * 99}  # fmt: skip
    for name, content in others.items():
        Path(name).write_bytes(content)
    tensors = {"none": {}, "two": {"a": torch.zeros(3), "b": torch.zeros(3)}, "deep": {"a": torch.zeros(2, 3, 4)}}
    for name, held in tensors.items():
        save_file(held, f"{name}.safetensors")
    bad = [f"{name}.npy" for name in ARRAYS] + list(others) + [f"{name}.safetensors" for name in tensors]
    for name in [*bad, "missing.npy", "missing.safetensors", ".", "row.txt"]:
        code, told = tried(["plot", "--logits", name], capsys)
        assert code == 2 and name.removesuffix(".") in told, (name, told)
    for row, code in (("2", 0), ("3", 2), ("9" * 30, 2)):
        assert tried(["plot", "--logits", "one.npy", "--row", row], capsys)[0] == code


# ---- models that cannot be loaded ---------------------------------------------------------------------------------------------


def test_models_that_are_none(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, content in (
        ("nothing.gguf", b""),
        ("junk.gguf", b"junk" * 99),
        ("cut.gguf", b"GGUF\3\0\0\0" + b"\xff" * 40),
    ):
        (tmp_path / name).write_bytes(content)
        code, told = tried(["generate", "x", "--gguf", name], capsys)
        assert code == 2 and f"the model '{name}' cannot be loaded" in told
    tiny = tiny_model.save(tmp_path / "tiny")
    capsys.readouterr()  # its progress
    for name, change in (
        ("config.json", lambda b: b[:20]), ("config.json", lambda _: b"{}"), ("config.json", lambda _: b"[]"), ("tokenizer.json", lambda b: b[:99]),
        ("model.safetensors", lambda b: b[:99]), ("model.safetensors", lambda _: b""),
    ):  # fmt: skip
        before = (tiny / name).read_bytes()
        (tiny / name).write_bytes(change(before))
        code, told = tried(["generate", "x", "--model", "tiny"], capsys)
        assert code == 2 and "the model 'tiny' cannot be loaded" in told
        (tiny / name).write_bytes(before)
    for name in ("nosuch", "nosuch/model", "empty", "/no/such", "a b", "x" * 300, "..", "tiny/config.json"):
        code, told = tried(["generate", "x", "--model", name], capsys)
        assert code == 2 and repr(name) in told
    code, told = tried(["generate", "x", "--model", "tiny", "--gguf", "no.gguf"], capsys)
    assert code == 2 and "the model 'no.gguf' of 'tiny' cannot be loaded" in told


# ---- peers ---------------------------------------------------------------------------------------------------------------


def test_peers_that_are_none(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path / "bin"), *__import__("sys").path[1:]])  # as for a console script
    (tmp_path / "exits_here.py").write_text("import sys; sys.exit('bye')")
    (tmp_path / "raises_here.py").write_text("raise RuntimeError('two\\nlines')")
    (tmp_path / "peers_here.py").write_text(
        "def raises(logits, seed): raise KeyError('two\\nlines')\ndef exits(*_): raise SystemExit\nfew = lambda: 1"
    )
    for name, words in (
        ("exits_here:f", "cannot be imported: SystemExit: bye"), ("raises_here:f", "RuntimeError: two lines"), ("peers_here:raises", "KeyError"),
        ("peers_here:exits", "it raised SystemExit"), ("peers_here:few", "takes 0 positional arguments"), ("peers_here:none", "cannot be imported"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as left:
            cli.main(["verify", "--quick", "--peer", name])
        told = capsys.readouterr().err
        assert left.value.code == 2 and words in told and told.count("\n") == 1


def test_a_peer_that_exits_later_is_wrong():
    from fastdecode.verify.finding import Check

    def exits(tick):
        raise SystemExit("two\nlines")

    found = verify.answer(Check("a check", exits), lambda share: None)
    assert found.right is False and found.seen == "SystemExit: two lines"


def test_an_engine_that_is_not_there(cheap, capsys):
    for arguments in (["generate", "words"], ["plot", "words"], ["plot", "--logits", "row.npy"], ["verify", "--quick"]):
        with dispatch.use("no such engine"):
            code, told = tried(arguments, capsys)
        assert code == 2 and "no such engine" in told
