"""The stages, the most valuable first, and how one is run: in a process group of its own, under a limit of its own, and told in a line
of stages.jsonl as soon as it has ended. Nothing here loads torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from ... import ROOT
from ..lines import append
from ..roster import WHO, Ended

LEAST = 6.0  # seconds without which a stage does not begin
TO_STOP = 7.0  # seconds that a program which watches its own time gets less than its stage
KILL_AFTER = 3.0
LOGGED = 60_000  # characters of a stage's output that log.txt keeps: the last ones
CONFORMANCE = ("tests/engines/test_conformance.py", "tests/engines/test_draw.py")
TOOLS = ("memcheck", "racecheck", "synccheck")
PROFILED = (("top_p", "1"), ("top_p", "64"))
NCU = ("--clock-control", "none", "--launch-skip", "1", "--launch-count", "1", "-k", "regex:sample_kernel")
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "LaunchStats", "Occupancy", "WarpStateStats")


@dataclass(frozen=True)
class Stage:
    """`tool`: a program that the command runs under, which must be installed; a dry run does without it."""

    name: str
    seconds: float
    command: tuple[str, ...]
    tool: tuple[str, ...] = ()
    timed: str = ""  # how its program is told when to stop by itself
    required: str = "cpu"  # FASTDECODE_REQUIRE


def stages(out: Path, dry: bool) -> list[Stage]:
    def program(name: str, *arguments: str) -> tuple[str, ...]:
        return ("-m", f"bench.gpu.{name}", *arguments)

    def tests(*arguments: str) -> tuple[str, ...]:
        plugin = ("-p", "bench.gpu.stand_in") if dry else ()
        return ("-m", "pytest", *plugin, "-q", "-p", "no:cacheprovider", "--tb=short", "-m", "gpu", *arguments)

    limits = {"fastdecode, cuda": 60, "fastdecode, triton": 35, "flashinfer": 30, "transformers, compiled": 45}
    bench = [
        Stage(
            f"bench: {who}",
            limits.get(who, 20),
            program("__main__", "--only", who, "--out", str(out / "bench.jsonl")),
            timed="--seconds",
        )
        for who in WHO
    ]
    few = (
        ("-n", "1", "-k", "cuda and (test_hostile_rows and keeping or test_the_engine_draws and tied)")
        if dry
        else ("-n", "12")
    )
    # The one that is left out compares 300 rows with the reference: a stand-in learns nothing from the ten seconds.
    graph = ("-k", "not batches_of_all_sizes") if dry else ()
    sanitizer = [
        Stage(tool, 20, program("lease.few_calls"), ("compute-sanitizer", "--tool", tool, "--error-exitcode", "7"))
        for tool in TOOLS
    ]
    profiles = [
        Stage(f"ncu: {rule}, B={batch}", 20, program("lease.few_calls", rule, batch),
              ("ncu", *NCU, *(word for section in SECTIONS for word in ("--section", section))))
        for rule, batch in PROFILED
    ]  # fmt: skip
    return [
        Stage("facts", 30, program("lease.facts", "--out", str(out / "facts.jsonl"))),
        Stage("build", 400 if dry else 150, program("lease.build")),
        Stage("smoke", 50, program("lease.smoke", "--out", str(out / "smoke.jsonl")), timed="--until"),
        Stage("graph", 40, tests(*graph, "tests/engines/test_cuda.py"), required="cpu,cuda"),
        *bench,
        Stage("conformance", 75, tests(*few, *CONFORMANCE), required="cpu,cuda,triton"),
        *sanitizer,
        *profiles,
    ]


@dataclass
class Run:
    """One run of the stages: where its results go, until when it lasts, and how its stages ended."""

    out: Path
    end: float
    dry: bool
    ended: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        caches = ROOT / "build" / "gpu-caches"  # of compilers: ignored by git, and found again by a second run
        self.environment = {
            **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1",
            "TRITON_CACHE_DIR": str(caches / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "FLASHINFER_WORKSPACE_BASE": str(caches), "FASTDECODE_GPU_DRY": "1" if self.dry else "0",
            "PATH": os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"]),
        }  # fmt: skip
        if self.dry:
            self.environment.setdefault("FASTDECODE_CUDA", "0")  # only what is missing is built, and nvcc takes minutes

    def stage(self, stage: Stage) -> str:
        """Runs it; how it ended."""
        seconds, began = min(stage.seconds, self.end - time.monotonic()), time.monotonic()
        program = stage.tool and shutil.which(stage.tool[0], path=self.environment["PATH"])
        code, output = None, ""
        if seconds < LEAST:
            ended = "skipped: no time was left"
        elif stage.tool and not program and not self.dry:
            ended = f"skipped: {stage.tool[0]} is not installed"
        else:
            tool = () if self.dry or not program else (program, *stage.tool[1:])
            own = max(1.0, seconds - TO_STOP) + (time.time() if stage.timed == "--until" else 0)
            limit = (stage.timed, str(own)) if stage.timed else ()
            code, output = self._run([*tool, sys.executable, *stage.command, *limit], seconds, stage.required)
            ended = {
                None: f"failed: more than {seconds:.0f} s",
                0: "passed",
                int(Ended.MISSING): "skipped: not installed",
            }.get(code, f"failed: exit code {code}")
        took = round(time.monotonic() - began, 1)
        said = next((line for line in reversed(output.splitlines()) if line.strip()), "")[:300]
        append(self.out / "stages.jsonl", {"stage": stage.name, "ended": ended, "code": code, "s": took, "said": said})
        with open(self.out / "log.txt", "a", encoding="utf-8") as log:
            log.write(f"---- {stage.name}: {ended}, {took} s\n{output[-LOGGED:]}\n")
        print(f"{stage.name:28}{took:6.1f} s  {ended}{said and f' ({said[:100]})'}", flush=True)
        self.ended[stage.name] = ended
        return ended

    def _run(self, command: list[str], seconds: float, required: str) -> tuple[int | None, str]:
        """Its exit code, None if it was out of time, and its output."""
        child = subprocess.Popen(
            command, cwd=ROOT, env={**self.environment, "FASTDECODE_REQUIRE": required}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            return (child.communicate(timeout=seconds)[0], child.returncode)[::-1]
        except subprocess.TimeoutExpired:
            _end(child, signal.SIGTERM)
            try:
                return None, child.communicate(timeout=KILL_AFTER)[0]
            except subprocess.TimeoutExpired:
                _end(child, signal.SIGKILL)
                return None, child.communicate()[0]
        finally:
            _end(child, signal.SIGKILL)  # whatever it started and left behind, too


def _end(child: subprocess.Popen, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, how)
