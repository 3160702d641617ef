"""What stands beside every figure: the machine (without its name), the versions and the commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path

import numpy
import torch
import transformers

from fastdecode.engines import cpu

from . import ROOT
from .cpu import llama


@cache
def machine() -> dict[str, str | int]:
    """The CPU, what ran on it, and how the extension was built."""
    built = cpu.build_info()
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": built["compiler"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "unset"),
        "llama.cpp": llama.available() or "not installed",
    }


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Neighbours:
    """How much of the machine other programs used, as a share of all its cores, since the last time this was asked."""

    def __init__(self) -> None:
        self.before = self._seconds()

    def share(self) -> float | None:
        """None where the system does not say."""
        now = self._seconds()
        if now is None or self.before is None:
            return None
        busy, own, wall = (after - before for after, before in zip(now, self.before))
        self.before = now
        return round(min(1.0, max(0.0, (busy - own) / (wall * (os.cpu_count() or 1)))), 3) if wall > 0 else None

    @staticmethod
    def _seconds() -> tuple[float, float, float] | None:
        try:
            fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
        except OSError:
            return None
        user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
        ticks = user + nice + system + irq + softirq + steal
        return ticks / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4]), os.times().elapsed


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    text = info.read_text(encoding="utf-8")

    def entry(name: str) -> str:
        match = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE)
        return match.group(1).strip() if match else "?"

    model = entry("model name")
    if model == "?":
        return platform.machine()
    return f"{model}, family {entry('cpu family')} model {entry('model')}"


def short_name() -> str:
    """For the name of the results file."""
    words = re.sub(r"\(R\)|\(TM\)|CPU|Processor|@.*", " ", str(machine()["cpu"])).lower()
    best = cpu.targets()[-1]
    return "-".join([*re.findall(r"[a-z0-9]+", words.split(",")[0])[:4], best])


@cache
def commit() -> dict[str, str | bool]:
    """The commit, and whether files that it tracks are changed. Results of the bench itself do not count."""
    try:
        head = git("rev-parse", "HEAD")
        changed = git(
            "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results", ":!docs/results.md"
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": True}
    return {"commit": head, "dirty": bool(changed)}


def git(*arguments: str) -> str:
    """What git says in this tree; OSError or CalledProcessError where there is no git or no repository."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
