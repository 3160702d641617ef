"""`python -m fastdecode plot`: what the picture shows is what the rules keep, and a request that cannot be met is one sentence."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fastdecode as fd
from fastdecode.cli import command as cli
from fastdecode.cli import generate, plot
from tests.support import tiny_model
from tests.support.cases import DATA

REAL = DATA / "smollm2_logits.safetensors"
FIVE = plot.Row(torch.tensor([0.15, 0.5, 0.03, 0.25, 0.07]).log(), "five")


@pytest.mark.parametrize(
    ("rule", "ranks", "mass"),
    [
        (fd.top_p(0.8), (1, 3), "0.90"),
        (fd.top_k(2), (1, 2), "0.75"),
        (fd.typical_p(0.2), (2, 2), "0.25"),  # the most probable token goes
        (fd.min_p(0.1), (1, 4), "0.97"),
    ],
    ids=repr,
)
def test_what_is_kept_of_five_tokens(rule, ranks, mass):
    found = plot.kept(FIVE, rule, 1.0)
    assert (found.first, found.last) == ranks and found.count == ranks[1] - ranks[0] + 1
    assert f"{found.mass:.2f}" == mass


def test_the_counts_of_the_lower_panel_are_those_of_single_calls():
    row = plot.row_of_file(str(REAL), 1)
    for rule in plot.USUAL:
        counts = plot.kept_counts(row, rule).tolist()
        assert len(counts) == len(plot.SWEEP)
        for place in (0, 20, 54):
            assert counts[place] == plot.kept(row, rule, float(plot.SWEEP[place])).count


def test_the_picture_shows_the_ranks_and_says_how_many():
    row, temperatures = plot.row_of_file(str(REAL), 1), (1.0, 2.0)
    figure = plot.picture(row, plot.USUAL, temperatures)
    *panels, sweep = figure.axes
    for t, curve, lanes in zip(temperatures, panels[::2], panels[1::2]):
        assert curve.get_title() == f"T = {t:g}"
        line = curve.lines[0].get_ydata()
        assert np.array_equal(line, (row.logits.double() / t).softmax(0).sort(descending=True).values)
        for bar, text, rule in zip(lanes.patches, lanes.texts, plot.USUAL):
            found = plot.kept(row, rule, t)
            low, high = bar.get_x(), bar.get_x() + bar.get_width()
            assert found.first - 1 < low < found.first and found.last < high
            assert text.get_text() == f"{found.count} ({found.mass:.0%})"
        assert len(lanes.patches) == len(plot.USUAL)
    assert plot.kept(row, fd.typical_p(0.9), 2.0).first > 1, (
        "a bar that does not begin at the first rank is in the picture"
    )
    assert [line.get_label() for line in sweep.lines[: len(plot.USUAL)]] == [repr(rule) for rule in plot.USUAL]


def test_no_two_rules_look_alike():
    assert len(set(plot.COLORS)) == len(set(plot.MARKERS)) == len(plot.COLORS) == len(plot.MARKERS)
    with pytest.raises(ValueError, match="1 to 8 rules; got 9"):
        plot.picture(FIVE, [fd.top_k(k) for k in range(1, 10)], (1.0,))


def test_the_command_reads_files_and_draws_the_rules_that_are_asked_for(tmp_path, capsys, monkeypatch):
    drawn = []
    picture = plot.picture
    monkeypatch.setattr(plot, "picture", lambda *given: drawn.append(given) or picture(*given))
    array, one = tmp_path / "logits.npy", tmp_path / "one.safetensors"
    np.save(array, np.random.default_rng(0).normal(size=(3, 200)).astype(np.float16))
    save_file({"anything": torch.randn(200)}, one)
    out = str(tmp_path / "kept.png")
    assert cli.main(["plot", "--logits", str(array), "--row", "2", "--top-h", ".4", "--top-p", ".9", "--out", out]) == 0
    assert cli.main(["plot", "--logits", str(one), "--temperatures", "1", "--out", out]) == 0
    assert "row 2 of logits.npy" in capsys.readouterr().out
    assert (tmp_path / "kept.png").read_bytes().startswith(b"\x89PNG")
    (row, rules, temperatures), (_, usual, only) = drawn
    assert torch.equal(row.logits, torch.from_numpy(np.load(array)[2]).float())
    assert repr(rules) == "[top_h(0.4), top_p(0.9)]" and temperatures == plot.TEMPERATURES
    assert usual == plot.USUAL and only == [1]


def test_a_text_is_given_to_the_model_as_it_is(tmp_path):
    loaded = generate.load(str(tiny_model.save(tmp_path)), None)
    row = plot.row_after(loaded, "the old keeper " * 10)
    ids = torch.tensor([loaded.tokenizer("the old keeper " * 10)["input_ids"]])
    assert torch.equal(row.logits, loaded.model(input_ids=ids).logits[0, -1].detach())
    assert len(row.name) < 100 and row.name.endswith("keeper '")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("", "give one of the two"),
        (f"words --logits {REAL}", "give one of the two"),
        ("--logits nothing.npy", "there is none at 'nothing.npy'"),
        (f"--logits {__file__}", "must be a .npy or .safetensors file; got '"),
        (f"--logits {REAL} --row 64", "--row must be below 64"),
        (f"--logits {REAL} --row -1", "--row: expected a whole number in [0, "),
        (f"--logits {REAL} --temperatures 0,1", "temperatures above 0; got [0, 1]"),
        (f"--logits {REAL} --top-p 2", "--top-p must be a number in (0, 1] (1 is off); got 2."),
        (f"--logits {REAL} --temperatures {'1,' * 16}1", "1 to 16 temperatures; got 17"),
        ("words --out kept.nothing", "--out must end in one of ."),
        ("words --out kept", "'kept'"),
        ("words --out no/such/kept.png", "--out: expected a file that can be written; got 'no/such/kept.png'"),
        ("words --temperatures 0", "temperatures above 0; got [0]"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_sentence(options, sentence, capsys, monkeypatch):
    monkeypatch.setattr(generate, "load", None)  # it must be said before a model is loaded
    with pytest.raises(SystemExit) as left:
        cli.main(["plot", *options.split()])
    told = capsys.readouterr().err
    assert left.value.code == 2 and sentence in told
    assert told.startswith("fastdecode: ") and told.count("\n") == 1


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))
    with pytest.raises(ValueError, match="plot needs packages that are not installed: `pip install matplotlib`"):
        plot.picture(FIVE, plot.USUAL, (1.0,))


def test_a_row_that_cannot_be_sampled_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        plot.picture(plot.Row(torch.full((9,), torch.nan), "bad"), plot.USUAL, (1.0,))
