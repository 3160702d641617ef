"""The benchmarks run, verify before they measure, and render what they measured; no time is asserted."""

from __future__ import annotations

import json
import math
import os
import re
import time

import numpy as np
import pytest
import torch

import fastdecode as fd
from bench import RESULTS, machine, page, plans, records, rows, timing
from bench.cpu import goals, grid, llama, ours, overhead, peers, render, run, verify
from bench.records import PLOTS, Results, read
from bench.studies import generate
from tests import ROOT


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    """Of the tiny grid, written and read back."""
    threads = torch.get_num_threads()
    measured = run.run(grid.tiny(), show=False)
    torch.set_num_threads(threads)
    return read(run.write(measured, tmp_path_factory.mktemp("results")))


def test_every_case_is_one_line_with_its_commit_and_machine(results):
    cases = [r for r in results.records if r["what"] != "overhead"]
    shapes = {(r["rule"], r["what"], r["T"], r["B"], r["dtype"], r["threads"]) for r in cases}
    assert len(shapes) == len(cases) == 5
    for r in results.records:
        assert re.fullmatch(r"[0-9a-f]{40}|unknown", r["commit"]) and isinstance(r["dirty"], bool)
        assert {"cpu", "cores", "compiler", "torch", "transformers"} <= set(r["machine"]) and r["instruction_set"]
        assert all(entry["median"] > 0 for entry in r["us_per_row"].values())
    for r in cases:
        assert {"engine", "one read", "exp pass", "hf"} <= set(r["us_per_row"])
        assert r["p10_us"] <= r["median_us"] <= r["p90_us"] and r["ratio_to_read"] > 0
        assert (r["slowest_row_us"] is None) == (r["B"] > 1)
        assert r["verified_rows"] >= r["B"] and 0 < r["kept"]["median"] <= r["kept"]["max"] <= r["V"]
        assert set(r["peers_over_engine"]) >= set(r["peers_over_call"]) >= {"hf"}
    json.dumps(results.records, allow_nan=False)


def as_main(results: Results) -> Results:
    """The same lines, as if the size were the one that tables and plots show."""
    return Results(results.path, [{**r, "V": grid.V_MAIN} for r in results.records])


def test_the_tables_hold_what_was_measured(results):
    text = render.section(as_main(results))
    for rule in ("none", "top_p .95"):
        row = next(line for line in text.splitlines() if line.startswith(f"| `{rule}` |"))
        (record,) = (r for r in results.all(rule=rule, what="token", B=1))
        assert f" | {render.number(record['median_us'])} | " in row
    assert "not measured" in text and "stand-ins" in text
    assert all(results.plot(name).name in text for name in PLOTS)
    assert "choice of the engine" in render.all_tables(results)


def test_another_machine_is_folded_under_the_newest(results):
    """With its own figures and goals, and with what it is."""
    text = render.other_section(as_main(results))
    full = render.section(as_main(results))
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert tables == [line for line in full.splitlines() if line.startswith("|")]
    assert text.startswith("<details><summary>") and text.endswith("</details>") and results.path.name in text


def test_the_plots_are_drawn(results):
    plots = pytest.importorskip("bench.cpu.plots", exc_type=ImportError)
    full = as_main(results)
    plots.draw(full)
    for name in PLOTS:
        assert full.plot(name).read_bytes().startswith(b"\x89PNG")


def test_the_page_has_room_for_the_tables(tmp_path):
    copy = tmp_path / "results.md"
    copy.write_text(page.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    for enclosing in (render.MARKERS, generate.MARKERS):
        for section in ("first", "second"):
            page.write(section, enclosing, copy)
        start, end = enclosing
        text = copy.read_text(encoding="utf-8")
        assert "first" not in text.split(start)[1].split(end)[0] and f"{start}\n\nsecond\n\n{end}" in text
    copy.write_text("no markers", encoding="utf-8")
    with pytest.raises(SystemExit, match="two markers"):
        page.write("third", render.MARKERS, copy)


def test_the_page_shows_what_the_files_hold():
    """No figure of it was written by hand, and it leads to each file."""
    text = page.PAGE.read_text(encoding="utf-8")
    for path in sorted(RESULTS.glob("cpu-*.jsonl")):
        full = read(path)
        for t in (1.0, 2.0):
            assert render.main_table(full, t) in text, path.name
        assert render.goals_table(full) in text and f"]({page.link(path)})" in text
    path = next(RESULTS.glob("generate-*.jsonl"))
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert generate.section(records, path) in text


def test_the_picture_of_the_speed_has_five_rows_with_both_ratios(results, tmp_path):
    plots = pytest.importorskip("bench.cpu.plots", exc_type=ImportError)
    for full, rows_drawn in (
        (read(next(RESULTS.glob("cpu-*.jsonl"))), 5),
        (as_main(results), 2),
    ):  # the tiny grid has two
        figure = plots.speed(full)
        (panel,) = figure.axes
        told = [text.get_text() for text in panel.texts]
        over = [full.one(rule=rule) for rule in plots.SHOWN]
        wanted = [f"{r[ratio]['hf']:.0f}x" for ratio in ("peers_over_engine", "peers_over_call") for r in over if r]
        assert told == wanted and len(told) == 2 * rows_drawn
    plots.draw_speed(full, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert "(bench/results/speed.png)" in (ROOT / "README.md").read_text(encoding="utf-8") and render.SPEED.is_file()


def test_goals_are_judged_by_their_bounds():
    for goal, reached in (
        (goals.Goal("", 2.0, True, 2.0), "yes"),
        (goals.Goal("", 2.0, True, 2.1), "no"),
        (goals.Goal("", 2.0, False, 1.9), "no"),
        (goals.Goal("", 2.0, False, None), "not measured"),
    ):
        assert goal.reached == reached


PEERS = """
import torch

def draws(logits, seed):
    return torch.multinomial(logits.softmax(-1), 1)

def in_place(logits, seed):
    return draws(logits.sub_(logits.amax(-1, keepdim=True)), seed)

def floats(logits, seed):
    return logits.sum(1)
"""


@pytest.fixture
def guests_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "peers_of_mine.py").write_text(PEERS)
    x = torch.randn(3, 300, generator=torch.Generator().manual_seed(1)) * 4
    x[:, 7] = -math.inf
    np.save("rows.npy", x.numpy())
    np.save("short.npy", x[:, :99].numpy())
    np.save("nan.npy", np.where(np.arange(3)[:, None] == 1, np.nan, x.numpy()))
    return x


def test_own_rows_and_an_own_sampler_are_measured(guests_here, tmp_path, threads, monkeypatch, capsys):
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    options = ["--quick", "--logits", "rows.npy", "--peer", "peers_of_mine:draws"]
    assert run.main(options) == 0
    assert "own V=300 B=1 float32" in capsys.readouterr().out and not (tmp_path / "results").exists()
    assert run.main([*options, "--out", "mine"]) == 0
    (path,) = (tmp_path / "mine").iterdir()
    cases = {r["rule"]: r for r in read(path).records if r["what"] == "token"}
    assert cases.keys() == set(plans.MAIN) and all(r["rows"] == "own" and r["V"] == 300 for r in cases.values())
    kept = (fd.truncate(guests_here, plans.BY_NAME["top_p .95"].plan(1.0)) > -math.inf).sum(1)
    assert cases["top_p .95"]["kept"] == {"median": int(kept.median()), "max": int(kept.max())}
    name = "the peer peers_of_mine:draws"
    assert {rule for rule, r in cases.items() if name in r["us_per_row"]} == {"none"}
    assert cases["none"]["us_per_row"][name]["inputs"] == 3
    assert cases["none"]["peers_over_engine"][name] > cases["none"]["peers_over_call"][name] > 0


def test_a_sampler_that_writes_into_its_logits_gets_new_ones_each_time(guests_here):
    guest = peers.guest("peers_of_mine:in_place")
    assert guest.writes and not peers.guest("peers_of_mine:draws").writes
    (candidate,) = guest.candidates(plans.BY_NAME["none"], "token", 1.0, 3)
    x = guests_here.clone()
    assert candidate.bind(x)().shape == (3, 1) and torch.equal(x, guests_here)
    assert "with a copy" in candidate.name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--logits", "missing.npy"], "--logits must name a file"),
        (["--logits", ""], "--logits must be a .npy or .safetensors file; got ''"),
        (["--logits", "short.npy"], "rows of at least 128 logits; those of 'short.npy' have 99"),
        (["--logits", "nan.npy"], "row 1 of 'nan.npy' holds NaN"),
        (["--peer", "peers_of_mine"], "--peer must be MODULE:FUNCTION"),
        (["--peer", "peers_of_mine:none"], "cannot be imported"),
        (["--peer", "peers_of_mine:floats"], "must draw tokens from logits [2, 2000]: expected 2 token ids"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(guests_here, options, words, capsys):
    with pytest.raises(SystemExit) as left:
        run.main(["--quick", *options])
    told = capsys.readouterr().err.splitlines()[-1]
    assert left.value.code == 2 and words in told and told.endswith(".") and not told.endswith("..")


def test_in_a_clone_the_newest_results_are_those_committed_last(tmp_path, monkeypatch):
    """A checkout gives all files its own time."""
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "someone")
    with pytest.raises(SystemExit, match="run: make bench"):
        records.newest()
    early, late = tmp_path / "cpu-z.jsonl", tmp_path / "cpu-a.jsonl"
    for second, path in enumerate((early, late)):
        path.touch()
        os.utime(path, (2e9 - second, 2e9 - second))
    assert records.newest() == early, "no repository: by the time of the file"
    machine.git("init", "-q")
    for second, path in enumerate((early, late)):
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"{1_700_000_000 + second} +0000")
        machine.git("add", path.name)
        machine.git("commit", "-q", "-m", path.name)
    assert records.newest() == late
    early.write_text("{}")
    assert records.newest() == early, "just written, and not committed"


def test_a_wrong_engine_is_not_timed(monkeypatch):
    """Of the same rows, but with another plan's mask, tokens or number of survivors."""
    x = rows.rows("real", 2000, 2)
    plan, other = fd.plan(fd.top_p(0.95)), fd.plan(fd.top_p(0.5))
    verify.verify(x, plan)
    for name, complaint in (("truncate", "values differ"), ("sample", "tokens|kept counts")):
        right = getattr(fd, name)
        with monkeypatch.context() as patched, pytest.raises(AssertionError, match=complaint):
            patched.setattr(fd, name, lambda x, _, right=right, **where: right(x, other, **where))
            verify.verify(x, plan)


def test_the_engine_alone_does_what_the_function_does():
    x, plan = rows.rows("real", 2000, 3), fd.plan(fd.min_p(0.05))
    answer, _ = ours.sample_engine(plan)(x)()
    want = answer.tokens.clone()
    assert torch.equal(ours.sample(plan)(x)().tokens, want)
    call = ours.sample_engine(plan, threads=1)(x)
    call()[0].tokens.fill_(-7)
    assert torch.equal(call()[0].tokens, want)
    assert torch.equal(ours.truncate_engine(plan)(x)()[0], fd.truncate(x, plan))


def test_the_engine_alone_keeps_its_logits():
    """A converted copy, of which nobody else knows, is still there when the addresses are used."""
    x, plan = rows.rows("real", 4000, 3), fd.plan(fd.top_p(0.9))
    call = ours.sample_engine(plan)(x.bfloat16().float())
    want = fd.sample(x.bfloat16().float(), plan, seed=ours.SEED, step=ours.STEP).tokens
    others = [torch.full_like(x, 5.0) for _ in range(50)]
    assert torch.equal(call()[0].tokens, want) and len(others) == 50


def test_peers_keep_what_we_keep():
    """On rows without ties; transformers' Top-H is another rule."""
    x = rows.rows("peaked", 2000, 4)
    for case in plans.RULES:
        ours_keep = fd.truncate(x, case.plan(2.0)) > -torch.inf
        for peer in peers.candidates(case, "mask", 2.0, 4, frozenset({"hf", "torch"})):
            if peer.name == "hf" and case.remark:
                continue
            differ = (peer.bind(x)() > -torch.inf) != ours_keep
            assert differ.sum() <= 2, f"{case.name}: {peer.name} keeps {int(differ.sum())} tokens otherwise"


def test_peers_draw_tokens():
    x = rows.rows("real", 2000, 2)
    everyone = grid.ALL_PEERS
    found = [peer for case in plans.RULES for peer in peers.candidates(case, "token", 1.5, 2, everyone)]
    assert {peer.name for peer in found} == everyone - (set() if llama.available() else {"llama.cpp"})
    for peer in found:
        tokens = [int(token) for token in peer.bind(x)()]
        assert len(tokens) == 2 and all(0 <= token < 2000 for token in tokens)


def test_stand_ins_are_the_real_row_and_lower_copies():
    real, wide, narrow = (rows.rows("real", vocab, 4) for vocab in (49152, 151936, 32000))
    assert torch.equal(wide[:, :49152], real)
    lower = real - wide[:, 49152 : 2 * 49152]
    assert abs(float(lower.mean()) - rows.OFFSET) < rows.JITTER
    assert all(set(narrow[i].tolist()) <= set(real[i].tolist()) for i in range(4))
    assert torch.equal(rows.rows("ties", 100, 2), rows.rows("ties", 100, 2).round())


def test_no_call_finds_the_row_of_the_call_before():
    """It would guess that row's branches right."""
    places = []

    def bind(x):
        def call():
            time.sleep(1e-4)
            places.append(int(x[0, 0]))

        return call

    found = timing.measure([timing.Candidate("one", bind)], [torch.full((1, 8), i) for i in range(3)], rounds=4)
    calls = places[-2 * 3 * 4 :]  # after those that calibrate
    assert all(before != timed for before, timed in zip(calls[::2], calls[1::2]))
    assert [len(samples) for samples in found["one"].samples] == [4, 4, 4]


def test_quantiles_and_summaries():
    assert timing.quantile([1.0, 2.0, 3.0], 0.5) == 2.0 and timing.quantile([1.0, 2.0], 0.25) == 1.25
    summary = timing.Timing([[1.0, 2.0, 9.0], [4.0, 4.0, 4.0]]).summary()
    assert summary["median"] == 3.0 and summary["slowest_row"] == 4.0 and summary["min"] == 1.0


def test_the_parts_of_the_overhead_add_up():
    threads = torch.get_num_threads()
    for record in overhead.measure_overhead(1000):
        assert (
            abs(sum(record["parts_us"].values()) - record["overhead_us"]) < 0.01
        )  # each is written with three decimals
    torch.set_num_threads(threads)


def test_neighbours_are_a_share_of_the_machine():
    neighbours = machine.Neighbours()
    sum(range(300_000))
    found = neighbours.share()
    assert found is None or 0 <= found <= 1


def test_llama_cpp_keeps_what_we_keep():
    if not llama.available():
        pytest.skip("llama-cpp-python is not installed")
    x = rows.rows("peaked", 2000, 8)
    for name in llama.CHAINS:
        plan = plans.BY_NAME[name].plan(2.0)
        tokens = torch.tensor([llama.bind(name, 2.0)(row[None])()[0] for row in x])
        kept = fd.truncate(x, plan).gather(1, tokens[:, None]) > -torch.inf
        assert kept.all(), f"{name}: llama.cpp draws what we remove"


def test_results_name_the_cpu_and_no_host():
    import platform

    assert re.fullmatch(r"[a-z0-9-]+", machine.short_name())
    host = platform.node()
    assert not host or host not in machine.machine().values()
