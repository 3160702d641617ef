"""fastdecode: logits in, tokens (or masked logits) out, in one pass, with the same answer on every device.

This is the public API; see the README for a tour. Names that are not listed here are internal, and may move.

    rules       temperature, top_k, top_p, min_p, typical_p, top_h, epsilon_cutoff, eta_cutoff, top_n_sigma, top_a, p_less
    a plan      plan, Plan, Rule
    verbs       sample, truncate, sample_temperatures; soft_tokens, soft_embedding, soft_logprobs
    answers     Sample, SoftTokens, STATUS_OK, STATUS_NAN, STATUS_EMPTY
    others      seed_and_streams (request ids of 64 bits), plot, info

Modules, imported where they are first used:

    hf          generate() of Hugging Face transformers
    selection   one answer from many samples
    texts       samples as records, and files of them
    verify      does a sampler draw from the right distribution?
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from .cli.doctor import info
from .embedding import soft_embedding
from .ops import sample, sample_temperatures, truncate
from .philox import seed_and_streams
from .plan import Plan, plan
from .plotting import plot
from .record import EMPTY as STATUS_EMPTY
from .record import NAN as STATUS_NAN
from .record import OK as STATUS_OK
from .record import Sample
from .rules import (
    Rule,
    epsilon_cutoff,
    eta_cutoff,
    min_p,
    p_less,
    temperature,
    top_a,
    top_h,
    top_k,
    top_n_sigma,
    top_p,
    typical_p,
)
from .soft import SoftTokens, soft_logprobs, soft_tokens

__version__ = "0.1.0"

__all__ = [
    "STATUS_EMPTY", "STATUS_NAN", "STATUS_OK",
    "Plan", "Rule", "Sample", "SoftTokens",
    "epsilon_cutoff", "eta_cutoff", "info", "min_p", "p_less", "plan", "plot", "sample", "sample_temperatures", "seed_and_streams",
    "soft_embedding", "soft_logprobs", "soft_tokens", "temperature", "top_a", "top_h", "top_k", "top_n_sigma", "top_p", "truncate", "typical_p",
]  # fmt: skip

_MODULES = {"hf": ".hf", "selection": ".scaling.selection", "texts": ".scaling.texts", "verify": ".verify"}

if TYPE_CHECKING:
    from . import hf as hf
    from . import verify as verify
    from .scaling import selection as selection
    from .scaling import texts as texts


def __getattr__(name: str) -> Any:
    """The modules, when they are asked for: `import fastdecode` alone imports no transformers."""
    if name in _MODULES:
        try:
            return importlib.import_module(_MODULES[name], __name__)
        except ImportError as error:
            # Not an ImportError: help(), dir() and hasattr() look at every name, and an AttributeError does not stop them.
            raise AttributeError(f"fastdecode.{name} cannot be imported here: {error}.") from error
    close: list[str] = []
    if not name.startswith("_"):  # libraries probe for such names often: fail fast
        names = [*__all__, *_MODULES]
        close = [known for known in names if known.startswith(f"{name}_")] or difflib.get_close_matches(
            name, names, n=1
        )
    remedy = f"the nearest name is {close[0]}" if close else "see help(fastdecode)"
    raise AttributeError(f"module 'fastdecode' has no {name!r}: {remedy}.", name=name)


def __dir__() -> list[str]:
    special = [name for name in globals() if name.startswith("__")]
    return sorted([*special, *__all__, *_MODULES])
