"""Hugging Face `generate()` with fastdecode's engines. The only package that imports transformers (5.23, 5.24, and 4.57 where it can).

The shortest way is one argument, `model.generate(..., custom_generate=fastdecode.hf.sample)`, or none at all inside
`with fastdecode.hf.patch(model):`; see `loop.py` and `patch.py`. Models that reason can do so in soft tokens, with
`custom_generate=fastdecode.hf.soft_thinking`, in `thinking.py`. Where transformers' own loop must run, there are its
warpers by their own names, `FusedLogitsProcessor(plan)` and `SamplerLogitsProcessor(plan)`; see `warpers.py`. For continuous
batching: `per_request(manager)`, in `batching.py`. Many temperatures and samples behind one prefill: `temperatures.py`.
"""

import contextlib

from .loop import sample, sample_with
from .patch import patch
from .temperatures import MultiTemperatureLogitsProcessor, Voted, generate_temperatures, vote_temperatures
from .thinking import SoftThinkingOutput, soft_thinking
from .warpers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    FusedLogitsProcessor,
    MinPLogitsWarper,
    SamplerLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopNSigmaLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

__all__ = [
    "EpsilonLogitsWarper", "EtaLogitsWarper", "FusedLogitsProcessor", "MinPLogitsWarper", "MultiTemperatureLogitsProcessor",
    "SamplerLogitsProcessor", "SoftThinkingOutput", "TemperatureLogitsWarper", "TopHLogitsWarper", "TopKLogitsWarper",
    "TopNSigmaLogitsWarper", "TopPLogitsWarper", "TypicalLogitsWarper", "Voted", "generate_temperatures", "patch", "sample",
    "sample_with", "soft_thinking", "vote_temperatures",
]  # fmt: skip

with contextlib.suppress(ImportError):  # transformers 4.57 has no such processors
    from .batching import PerRequestLogitsProcessor, per_request

    __all__ += ["PerRequestLogitsProcessor", "per_request"]
