"""The tests: what is asked and answered (core, soft), who answers it (engines), who calls it (hosts), what is made of samples
(scaling), what helps a person (tools), and the order of the source itself (house). `support` holds what they share."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
