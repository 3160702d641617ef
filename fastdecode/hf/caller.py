"""What the call of `generate` holds that never arrives in a custom loop."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from transformers.generation import utils as theirs

from . import forward

_GENERATE = inspect.unwrap(theirs.GenerationMixin.generate).__code__

# What only assisted decoding reads. `prompt_lookup_num_tokens`, `use_mtp` and `assistant_early_exit` switch it on, which the
# generation mode tells; these do not.
ASSISTING = {
    "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind",
    "target_lookbehind",
}  # fmt: skip


def refuse_what_generate_keeps(model: Any, loop: str, alone: str, streaming: str) -> None:
    """`generate` hands `assistant_model`, `streamer` and `synced_gpus` to its own loops, and drops them where a callable runs.

    No argument, attribute or config of what a callable gets tells that they were given, so this looks where they are: into the
    local variables of the `generate` that called the loop. It reads them once for each generation, and changes nothing. A loop
    that was called otherwise finds no such frame, or one of another model, and has nothing to refuse.

    Args:
        model: that the loop runs.
        loop: its name in fastdecode.hf.
        alone, streaming: what to do instead with an assistant, and with a streamer.

    Raises:
        ValueError: one of them was given.
    """
    frame = sys._getframe(1)
    while frame.f_code is not _GENERATE:
        if frame.f_back is None:
            return
        frame = frame.f_back
    given = frame.f_locals
    if given.get("self") is not model:
        return
    assisting = ["assistant_model"] if given.get("assistant_model") is not None else []
    assisting += sorted(ASSISTING & {name for name, value in given.get("kwargs", {}).items() if value is not None})
    if assisting:
        raise ValueError(f"fastdecode.hf.{loop} decodes without an assistant; got {', '.join(assisting)}: {alone}.")
    if given.get("streamer") is not None:
        raise ValueError(
            "generate() keeps its streamer from a custom loop, so that it would hear the prompt and nothing after it; pass "
            f"{streaming} instead."
        )
    synced = given.get("synced_gpus")
    if synced is not None and bool(synced) != forward.synced(model):
        raise ValueError(
            f"generate() keeps synced_gpus from a custom loop; got {synced}, where fastdecode.hf.{loop} finds "
            f"{not synced}: leave one of the two out."
        )
