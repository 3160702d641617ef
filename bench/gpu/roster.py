"""Who is measured, and how a process that measured may end. For programs that start others: nothing here loads torch, which takes
seconds of the few minutes that there are.
"""

from __future__ import annotations

from enum import IntEnum

# The most valuable first.
WHO = (
    "fastdecode, cuda",
    "fastdecode, triton",
    "flashinfer",
    "flashinfer, logits",
    "transformers",
    "transformers, compiled",
    "vllm",
)


def engine_of(who: str) -> str | None:
    """The engine, if the candidate is one of those here."""
    name, _, engine = who.partition(", ")
    return engine if name == "fastdecode" else None


class Ended(IntEnum):
    """Exit codes."""

    DONE = 0
    FAILED = 1  # an answer, a capture or a case of an engine here
    MISSING = 3  # the candidate is not installed
    CANNOT_CAPTURE = 4  # the parent starts another process, which does not try it for this rule
    OUT_OF_TIME = 6  # it was killed
    SPOILED = 5  # an error of the device, after which nothing in this process can be trusted


# What a line of results says instead of a time.
NO_TIME = ("wrong", "failed", "cannot_capture", "died", "missing", "stopped")
FAULTS = NO_TIME[:4]
