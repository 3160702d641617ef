"""The pages in docs/ are run: their code, what they say it prints, their commands, links and figures."""

from __future__ import annotations

import inspect
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from fastdecode.cli import command as cli
from fastdecode.rules import RULES
from tests import ROOT
from tests.support import pages

FOLDER = ROOT / "docs"
PAGES = sorted(FOLDER.glob("*.md"))
RESULTS = ROOT / "bench" / "results"


def named(path: Path) -> str:
    return path.stem


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_the_code_prints_what_stands_below_it(path):
    """After a change that is meant: `python tests/support/pages.py docs/PAGE.md` writes the new output."""
    page = read(path)
    if "TopHLogitsWarper" in page and not hasattr(pytest.importorskip("transformers"), "TopHLogitsWarper"):
        pytest.skip("transformers 4.57 has no Top-H")
    assert pages.filled(page) == page


def test_output_is_compared():
    page = "```python\nprint(6 * 7)\n```\n\n```text\n{}\n```\n"
    assert pages.filled(page.format(41)) == page.format(42)
    with pytest.raises(ZeroDivisionError):
        pages.filled("```python\n1 / 0\n```\n")
    for path in PAGES:  # a block of output follows a block of code
        kinds = re.findall(r"^```(\w+)$", read(path), re.MULTILINE)
        assert all(before == "python" for before, kind in zip(["", *kinds], kinds) if kind == "text"), path.name


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=named)
def test_links_and_pictures_lead_somewhere(path):
    for link in pages.links(read(path)):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in pages.anchors(read(target)), link


def test_every_page_is_listed():
    linked = {link for link in pages.links(read(FOLDER / "README.md")) if not link.startswith("..")}
    assert linked == {path.name for path in PAGES} - {"README.md"}


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_the_commands_parse(path):
    for line in pages.commands(read(path)):
        if "-m fastdecode" in line:
            cli._parser().parse_args(shlex.split(line.split("-m fastdecode", 1)[1]))


def test_each_rule_has_its_section_with_its_source_and_an_example():
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", read(FOLDER / "rules.md"), re.MULTILINE | re.DOTALL))
    assert list(sections)[: len(RULES)] == [rule.__name__ for rule in RULES]
    for rule in RULES:
        section = sections[rule.__name__]
        assert re.findall(r"arXiv ([\d.]+\d)", section) == re.findall(r"arXiv ([\d.]+\d)", inspect.getdoc(rule))
        assert f"fd.{rule.__name__}(" in section
        assert "No parameter." in section if not inspect.signature(rule).parameters else "Usual: " in section


def test_the_figure_of_cuts_is_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["figures.py", str(tmp_path)])
    drawn = runpy.run_path(str(FOLDER / "figures.py"))
    assert (tmp_path / "cuts.png").read_bytes().startswith(b"\x89PNG")
    kept = {
        name: [bar.get_x() + bar.get_width() / 2 for bar in drawn[name].patches if not bar.get_hatch()]
        for name in ("floor", "prefix", "typical")
    }
    expected = {"floor": range(1, 7), "prefix": range(1, 6), "typical": range(2, 5)}
    assert {name: [round(x) for x in kept[name]] for name in kept} == {n: list(r) for n, r in expected.items()}


def test_the_table_of_choosing_is_that_of_the_results():
    """bench.studies.quality writes both numbers; the page shows some of them."""
    sys.path.insert(0, str(ROOT))
    from bench.studies import quality

    records = [json.loads(line) for line in read(RESULTS / "quality.jsonl").splitlines()]
    page = read(FOLDER / "choosing.md")
    rules = [rule for rule in quality.RULES if rule != "none"]
    shown = re.findall(r"^\| ([\d.]+) \| (\S+) \| (.*) \|$", page, re.MULTILINE)
    assert len(shown) == 16
    for t, name, cells in shown:
        for rule, cell in zip(rules, cells.split(" | ")):
            assert cell == quality.shown(quality.values(records, rule, float(t), name).values()), (t, name, rule)
    differences = quality.comparisons(records)
    text = " ".join(page.split())
    for t, rules, name, quoted in (
        (1.5, ("top_h .4", "min_p .1"), 0, "less* likely than min-p (by 0.49 ± 0.09"),
        (2, ("top_h .4", "min_p .1"), 0, "and 0.96 ± 0.05 nats"),
        (1.5, ("top_h .4", "min_p .1"), 3, "no more sums (-0.06 ± 0.04"),
        (2, ("top_h .4", "min_p .1"), 3, "and -0.05 ± 0.01)"),
        (1.5, ("top_h .4 hf", "min_p .1"), 0, "as likely at 1.5 (+0.04 ± 0.03)"),
        (2, ("top_h .4 hf", "min_p .1"), 0, "more likely at 2 (+0.26 ± 0.08)"),
    ):
        row = f"| {t:g} | `{rules[0]}` less `{rules[1]}` | "
        cells = differences.split(row)[1].split(" |\n")[0].split(" | ")
        assert quoted in text and re.search(r"[\d.]+ ± [\d.]+", quoted).group(0) in cells[name]
