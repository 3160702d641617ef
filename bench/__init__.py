"""Microbenchmarks of fastdecode: see bench/README.md. Inputs and judges are those of the tests."""

import os
from pathlib import Path

# As the Makefile has it: threads that wait in a busy loop take the cores from what is measured next. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
