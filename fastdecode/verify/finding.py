"""The result of a check, and its progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Tick = Callable[[float], None]  # the share of a check that is done


@dataclass(frozen=True)
class Finding:
    """One line of the summary."""

    right: bool | None  # None: not run here
    seen: str
    finds: str = ""  # the smallest fault that the check finds: its power


@dataclass(frozen=True)
class Check:
    """A question about a sampler."""

    name: str
    ask: Callable[[Tick], Finding]


Line = tuple[str, Finding, float]  # a check's name, its finding, seconds
