"""`fd.plot` and `python -m fastdecode plot`: the picture shows what the plans keep, and a request that cannot be met is one sentence."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fastdecode as fd
from fastdecode import plotting
from fastdecode.cli import command as cli
from fastdecode.cli import generate, plot
from fastdecode.rules import RULES
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
    found = plotting.kept(FIVE.logits, rule, 1.0)
    assert (found.first, found.last) == ranks and found.count == ranks[1] - ranks[0] + 1
    assert f"{found.mass:.2f}" == mass


def test_the_counts_of_the_lower_panel_are_those_of_single_calls():
    row = plot.row_of_file(str(REAL), 1)
    for rule in plot.USUAL:
        counts = plotting.kept_counts(row.logits, rule).tolist()
        assert len(counts) == len(plotting.SWEEP)
        for place in (0, 20, 54):
            assert counts[place] == plotting.kept(row.logits, rule, float(plotting.SWEEP[place])).count


def test_the_picture_shows_the_ranks_and_says_how_many():
    row, temperatures = plot.row_of_file(str(REAL), 1), (1.0, 2.0)
    figure = plot.picture(row, plot.USUAL, temperatures)
    *panels, sweep = figure.axes
    for t, curve, lanes in zip(temperatures, panels[::2], panels[1::2]):
        assert curve.get_title() == f"T = {t:g}"
        line = curve.lines[0].get_ydata()
        assert np.array_equal(line, (row.logits.double() / t).softmax(0).sort(descending=True).values)
        for bar, text, rule in zip(lanes.patches, lanes.texts, plot.USUAL):
            found = plotting.kept(row.logits, rule, t)
            low, high = bar.get_x(), bar.get_x() + bar.get_width()
            assert found.first - 1 < low < found.first and found.last < high
            assert text.get_text() == f"{found.count} ({found.mass:.0%})"
        assert len(lanes.patches) == len(plot.USUAL)
    assert plotting.kept(row.logits, fd.typical_p(0.9), 2.0).first > 1, (
        "a bar that does not begin at the first rank is in the picture"
    )
    assert [line.get_label() for line in sweep.lines[: len(plot.USUAL)]] == [repr(rule) for rule in plot.USUAL]


class Words:
    """A tokenizer that writes the number of a token; the first one as text that a picture might take for a formula."""

    def decode(self, ids):
        return " $a_{b$ 中" if ids == [0] else f" t{ids[0]}"


def test_a_marker_stands_at_each_edge():
    """At the last token that is kept, and at the first one where that is not the most probable token."""
    curve = fd.plot(FIVE.logits, [fd.top_p(0.8), fd.typical_p(0.2)]).axes[0]
    edges = {(int(line.get_xdata()[0]), line.get_color()) for line in curve.lines if line.get_marker() != "None"}
    color = {rule.name: plotting.look(fd.plan(rule)).color for rule in (fd.top_p(0.8), fd.typical_p(0.2))}
    assert edges == {(3, color["top_p"]), (2, color["typical_p"])}
    wide = fd.plot(plot.row_of_file(str(REAL), 1).logits, fd.plan(fd.temperature(2), fd.typical_p(0.9))).axes[0]
    found = plotting.kept(plot.row_of_file(str(REAL), 1).logits, fd.typical_p(0.9), 2.0)
    assert {int(line.get_xdata()[0]) for line in wide.lines[1:]} == {found.first, found.last}


def test_plans_are_drawn_at_the_temperature_they_begin_with():
    chain = fd.plan(fd.temperature(2), fd.top_k(50), fd.top_p(0.9))
    figure = fd.plot(FIVE.logits.half().numpy(), [fd.min_p(0.1), chain, fd.plan(fd.temperature(2)), fd.min_p(0.1)])
    assert [panel.get_title() for panel in figure.axes[::2]] == ["T = 1", "T = 2"]
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == [
        "min_p(0.1)", "top_k(50), top_p(0.9)", "no rule",
    ]  # fmt: skip
    assert [len(lanes.patches) for lanes in figure.axes[1::2]] == [1, 2]


def test_the_tokens_are_named():
    """On the curve, and below it those that a plan keeps; not as formulas, and in characters that the font has."""
    figure = fd.plot(FIVE.logits, [fd.top_k(2), fd.top_p(0.8)], Words())
    curve, _, names = figure.axes
    assert [text.get_text() for text in curve.texts] == ["·t1", "·t3", "·$a_{b$·\\u4e2d", "·t4", "·t2"]
    assert [text.get_text() for text in names.texts] == ["·t1 ·t3", "·t1 ·t3 ·$a_{b$·\\u4e2d"]
    figure.savefig("/dev/null", format="png")  # a formula that cannot be read would raise here


def test_names_that_do_not_fit_are_dots_and_the_last_one():
    assert plotting.listed([1, 2, 3], Words(), 11) == "·t1 ·t2 ·t3"
    assert plotting.listed(list(range(1, 100)), Words(), 20) == "·t1 ·t2 ·t3 … ·t99"


def test_a_rule_has_one_color_of_its_own():
    """In every picture, whatever else is drawn; plans of one rule differ by their dashes."""
    names = [rule for rule in RULES if rule is not fd.temperature]
    assert len(names) <= len(plotting.COLORS) == len(plotting.MARKERS), "plotting.COLORS needs another color and marker"
    looks = [plotting.COLORS, plotting.MARKERS]
    assert all(len(set(each)) == len(each) for each in looks) and plotting.CHAIN not in plotting.COLORS
    alone = fd.plot(FIVE.logits, fd.min_p(0.1)).axes[1].patches
    among = fd.plot(FIVE.logits, [fd.top_k(2), fd.min_p(0.2), fd.min_p(0.1)]).axes
    assert among[1].patches[2].get_facecolor() == among[1].patches[1].get_facecolor() == alone[0].get_facecolor()
    assert among[1].patches[0].get_facecolor() != alone[0].get_facecolor()
    dashes = [line.get_linestyle() for line in among[0].lines if len(line.get_xdata()) == 2]
    assert len(dashes) == 3 and dashes[1] != dashes[2]
    with pytest.raises(ValueError, match="4 plans of top_k apart; got 9: draw fewer"):
        plot.picture(FIVE, [fd.top_k(k) for k in range(1, 10)], (1.0,))


@pytest.mark.parametrize(
    ("logits", "plans", "sentence"),
    [
        (torch.zeros(2, 9), fd.top_k(2), "one row, logits of shape"),
        (torch.full((9,), torch.nan), fd.top_k(2), "NaN"),
        (torch.full((9,), -torch.inf), fd.top_k(2), "nothing but -inf"),
        (FIVE.logits, [], "one plan or more; got none"),
        (FIVE.logits, fd.plan(fd.temperature(0)), "temperatures above 0"),
        (FIVE.logits, fd.top_k([2, 3]), "one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_drawn_is_refused(logits, plans, sentence):
    with pytest.raises(ValueError, match=sentence):
        fd.plot(logits, plans)


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


def test_without_matplotlib_it_says_what_to_install(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it raises
    with pytest.raises(ImportError, match="plot draws with matplotlib, which is not installed: pip install matplotlib"):
        fd.plot(FIVE.logits, fd.top_k(2))
    with pytest.raises(SystemExit):
        cli.main(["plot", "--logits", str(REAL)])
    assert "pip install matplotlib" in capsys.readouterr().err


def test_importing_the_package_imports_no_matplotlib():
    code = "import sys, fastdecode; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
