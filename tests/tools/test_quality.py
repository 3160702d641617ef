"""bench/studies/quality.py: its measures on samples whose values can be said without a computer, and a whole run on a tiny model."""

from __future__ import annotations

import json
import math
import sys

import pytest

from bench.studies import quality
from fastdecode import hf
from fastdecode.cli import generate
from fastdecode.scaling import texts
from tests.support import tiny_model


def test_distinct():
    assert quality.distinct([[1, 1, 2, 1]], 1) == 2 / 4
    assert quality.distinct([[1, 1, 2, 1]], 2) == 3 / 3
    assert quality.distinct([[1, 2, 3], [1, 2, 4]], 2) == 3 / 4, "n-grams of all samples together"
    assert math.isnan(quality.distinct([[], [7]], 2))


def test_bleu():
    assert quality.bleu([1, 2, 3, 4, 5], [[9, 9], [1, 2, 3, 4, 5]]) == 1
    # 2 of 3 single tokens, (1 + 1) of (2 + 1) pairs, (0 + 1) of (1 + 1) triples, and one token too short
    assert math.isclose(quality.bleu([1, 2, 3], [[1, 2, 9, 9]]), (2 / 3 * 2 / 3 * 1 / 2) ** 0.25 * math.exp(1 - 4 / 3))
    # a token counts as often as one of the others has it, not more; of two equally near lengths the shorter one counts
    assert math.isclose(quality.bleu([5, 5, 5], [[5, 6], [6, 5, 6, 6]]), (1 / 3 * 1 / 3 * 1 / 2) ** 0.25)
    assert quality.bleu([1, 2], [[3, 4]]) == quality.bleu([], [[3, 4]]) == 0


def test_self_bleu():
    assert quality.self_bleu([[1, 2, 3, 4, 5]] * 3) == 1
    assert quality.self_bleu([[1, 2], [3, 4], [5, 6]]) == 0
    assert math.isclose(quality.self_bleu([[1, 2, 3], [1, 2, 3], [7, 8, 9]]), 2 / 3)


def test_a_comparison_is_made_prompt_by_prompt():
    """Prompts differ more than rules do: the error of the difference is that of the differences."""
    records = [
        {"rule": rule, "T": t, "prompt": str(p), **dict.fromkeys(quality.MEASURES, 10.0 * p + better), "tokens": 1}
        for t in quality.TEMPERATURES
        for rule, better in zip(quality.RULES, range(6))
        for p in range(3)
    ]
    difference = list(quality.RULES).index("top_h .4") - list(quality.RULES).index("min_p .1")
    row = f"| 2 | `top_h .4` less `min_p .1` | {' | '.join([f'{difference:+.2f} ± 0.00'] * 4)} |"
    assert row in quality.comparisons(records)
    assert "10.00 ± 5.77" in quality.table(records)  # the mean of 0, 10 and 20; 10 / sqrt(3)


def test_a_run_writes_everything_and_goes_on_from_its_files(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    loaded = generate.load(str(tiny_model.save(tmp_path / "model")), None)
    loaded.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    loaded.tokenizer.pad_token = "<end>"
    monkeypatch.setattr(quality.generate, "load", lambda *_: loaded)
    sums = [("the old keeper", "21"), ("the young boat", "3")]
    settings = {"RESULTS": tmp_path, "FOLDER": tmp_path / "quality", "TOKENS": 6, "ROUND": 2, "SUMS": sums}
    for name, value in settings.items():
        monkeypatch.setattr(quality, name, value)
    monkeypatch.setattr(sys, "argv", ["quality"])
    assert quality.main() == 0
    records = [json.loads(line) for line in (tmp_path / "quality.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(records) == len(quality.RULES) * len(quality.TEMPERATURES) * (len(quality.PROMPTS) + len(sums))
    assert {r["right"] for r in records if "right" in r} == {0.0}, "it cannot count"
    made = [text for number in (0, 1) for text in texts.load(quality.FOLDER / f"stories-min_p-.1-{number}.jsonl")]
    one = [t for t in made if t.prompt == 3 and t.temperature == 1.5]
    assert len(one) == 4 and len({tuple(t.tokens) for t in one}) > 1
    found = next(r for r in records if (r["rule"], r["T"], r["prompt"]) == ("min_p .1", 1.5, quality.PROMPTS[3]))
    assert found["likelihood"] == sum(t.raw_logprob for t in one) / sum(len(t.tokens) for t in one) < 0
    shown = (tmp_path / "quality.md").read_text(encoding="utf-8")
    assert shown.strip() in capsys.readouterr().out and all(shown.count(f"| `{rule}` |") == 4 for rule in quality.RULES)
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(hf, "generate_temperatures", lambda *_, **__: pytest.fail("these texts are there already"))
    assert quality.main() == 0
    (quality.FOLDER / "stories-none-1.jsonl").unlink()
    monkeypatch.setattr(sys, "argv", ["quality", "--minutes", "0"])
    assert quality.main() == 1 and "run again to go on" in capsys.readouterr().out
