"""fastdecode: logits in, tokens (or masked logits) out, in one pass, with the same answer on every device.

This is the public API; see the README for a tour.
"""

from .embedding import soft_embedding
from .ops import sample, sample_temperatures, truncate
from .plan import Plan, plan
from .record import EMPTY as STATUS_EMPTY
from .record import NAN as STATUS_NAN
from .record import OK as STATUS_OK
from .record import Sample
from .report import info
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
    "epsilon_cutoff", "eta_cutoff", "info", "min_p", "p_less", "plan", "sample", "sample_temperatures", "soft_embedding", "soft_logprobs",
    "soft_tokens", "temperature", "top_a", "top_h", "top_k", "top_n_sigma", "top_p", "truncate", "typical_p",
]  # fmt: skip
