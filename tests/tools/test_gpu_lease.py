"""`make gpu-lease` where there is no GPU: how its stages end, which extension it takes, and what a dry run leaves behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.gpu.lease import build, facts, stages
from bench.gpu.lines import read
from bench.gpu.roster import WHO
from tests import ROOT


def lease(out: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "bench.gpu.lease", "--out", str(out), *options]
    return subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)


def status() -> str:
    return subprocess.run(["git", "status", "--short"], cwd=ROOT, text=True, capture_output=True).stdout


@pytest.fixture
def run(tmp_path, monkeypatch) -> stages.Run:
    monkeypatch.setattr(stages, "LEAST", 0.5)
    return stages.Run(tmp_path, time.monotonic() + 60, dry=False)


def test_the_order_of_the_stages():
    names = [stage.name for stage in stages.stages(Path("x"), dry=False)]
    order = [
        "facts",
        "build",
        "smoke",
        "graph",
        *(f"bench: {who}" for who in WHO),
        "conformance",
        "memcheck",
        "racecheck",
        "synccheck",
    ]
    assert (
        names[: len(order)] == order
        and all(name.startswith("ncu") for name in names[len(order) :])
        and len(names) == len(order) + 2
    )
    assert names == [stage.name for stage in stages.stages(Path("x"), dry=True)], "a dry run leaves nothing out"


def test_a_stage_ends_alone(run):
    """It fails, it is out of time with a child of its own, its tool is missing, nothing is left for it: the next one begins."""
    forever = "import subprocess, sys, time; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    made = (
        stages.Stage("fails", 20, ("-c", "print('so it is'); raise SystemExit(2)")),
        stages.Stage("too long", 2, ("-c", forever)),
        stages.Stage("peer", 20, ("-c", "raise SystemExit(3)")),
        stages.Stage("tool", 20, ("-c", ""), tool=("no-such-tool",)),
        stages.Stage("works", 20, ("-c", "import sys; print(sys.argv[1:])"), timed="--seconds"),
        stages.Stage("late", 0.1, ("-c", "")),
    )
    began = time.monotonic()
    assert [run.stage(stage) for stage in made] == [
        "failed: exit code 2", "failed: more than 2 s", "skipped: not installed", "skipped: no-such-tool is not installed", "passed",
        "skipped: no time was left",
    ]  # fmt: skip
    assert time.monotonic() - began < 30
    records = read(run.out / "stages.jsonl")
    assert [r["stage"] for r in records] == [stage.name for stage in made]
    assert records[0]["said"] == "so it is" and records[4]["said"] == "['--seconds', '13.0']"
    assert "so it is" in (run.out / "log.txt").read_text()


def test_the_whole_has_an_end_too(run):
    run.end = time.monotonic() + 1
    assert run.stage(stages.Stage("long", 100, ("-c", "import time; time.sleep(100)"))) == "failed: more than 1 s"


def test_which_extension_is_taken(tmp_path, monkeypatch):
    extension = build.carried()
    assert extension and build.objection(None, None) == "there is none"
    other = tmp_path / extension.name
    shutil.copy(extension, other)
    key = bytes.fromhex(build.runpy.run_path(str(ROOT / "csrc/source_key.py"))["source_key"]())
    assert key in other.read_bytes(), "build the extension: make dev"
    assert build.objection(other, None) is None
    assert "and this device is 1.0" in build.objection(other, "1.0")
    monkeypatch.setattr(build, "ASK", "import nothing_of_this_name")
    assert build.objection(other, None) == f"{other.name} cannot be loaded here"
    other.write_bytes(other.read_bytes().replace(key, key[::-1]))
    assert build.objection(other, None) == f"{other.name} was compiled from another source"


def test_the_barrier_compiles(tmp_path):
    """What facts.py has compiled on the device."""
    if not shutil.which("nvcc"):
        pytest.skip("no nvcc")
    (tmp_path / "barrier.cu").write_text(facts.BARRIER)
    subprocess.run(["nvcc", "-arch=sm_90", "-ptx", "barrier.cu"], cwd=tmp_path, check=True)
    ptx = (tmp_path / "barrier.ptx").read_text()
    assert ".reqnctapercluster 8, 1, 1" in ptx and ptx.count("barrier.cluster.wait.acquire.aligned") >= 1


def test_without_a_device_there_is_a_sentence(tmp_path):
    done = lease(tmp_path)
    if "torch sees no CUDA device" not in done.stdout:
        pytest.skip("there is a device")
    assert done.returncode == 1 and done.stdout.splitlines()[-1].endswith("make gpu-lease DRY=1 rehearses it.")
    assert [r["stage"] for r in read(tmp_path / "stages.jsonl")] == ["facts"]


def test_a_dry_run(tmp_path):
    """Two of its stages: the rest takes minutes, and .ci/run has all of them. An earlier run's results stay."""
    before = status()
    (tmp_path / "table.txt").write_text("of an earlier run")
    done = lease(tmp_path, "--dry", "--only", "facts", "--only", "graph")
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "earlier-1" / "table.txt").read_text() == "of an earlier run"
    assert [(r["stage"], r["ended"]) for r in read(tmp_path / "stages.jsonl")] == [
        ("facts", "passed"),
        ("graph", "passed"),
    ]
    assert (tmp_path / "table.txt").read_text().startswith("A DRY RUN")
    found = {name: value for r in read(tmp_path / "facts.jsonl") for name, value in r.items()}
    assert found["dry_run"] and {"copy_GB_s", "read_GB_s", "launch_us_graph", "cluster_barrier_us"} <= set(found)
    assert json.loads((tmp_path / "stages.jsonl").read_text().splitlines()[1])["said"].split()[1] == "passed,"
    assert status() == before
    unknown = lease(tmp_path, "--dry", "--only", "nothing")
    assert unknown.returncode == 2 and "--only must name one of facts, build, smoke" in unknown.stdout
