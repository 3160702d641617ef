"""`python -m fastdecode verify`: is the sampler on this machine right? Statistics with stated power, and exact comparisons.

An engine of fastdecode must give exact masks and tokens (against float64), its noise out to the quantile 1 - 1e-10, batch
invariance, per-row seeds, flagged rows, and replays of a CUDA graph. An engine or a peer is judged by its draws alone: G-tests of
four distributions, the thin tail, independence, and -inf. A correct sampler fails with probability 1e-6 at most. Each
result names the smallest fault that its check finds with probability 0.999.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .. import dispatch
from .finding import Check, Finding, Line, Tick

if TYPE_CHECKING:
    from .samplers import Sampler

__all__ = ["run"]


def run(backend: str | None, peer: str | None, device: str | None, quick: bool, seed: int) -> int:
    """Judge, show the summary, and return the exit code: 0 right, 1 wrong.

    Raises:
        ValueError: there is no such engine or peer, or it cannot run here.
        ImportError: scipy is not installed.
    """
    from . import show, statistics
    from .samplers import engine_named, peer_named

    sampler = peer_named(peer, device) if peer else engine_named(backend, device)
    print(f"{sampler} on {sampler.device}, seed {seed}{', quick' if quick else ''}")
    lines = ask(sampler, quick, seed, show.progress)
    show.summary(lines)
    wrong = [name for name, finding, _ in lines if finding.right is False]
    if wrong:
        print(f"wrong: {', '.join(wrong)}")
        return 1
    print(
        f"right. All tests together raise a false alarm with probability {statistics.ALARM:g} at most; "
        f"what stands under 'would find' is found with probability {statistics.POWER:g}."
    )
    return 0


def ask(
    sampler: Sampler,
    quick: bool,
    seed: int,
    progress: Callable[[Sequence[Check], Callable[[Check, Tick], Finding]], list[Line]],
) -> list[Line]:
    """Run all checks that apply to a sampler."""
    from . import draws, exact
    from .samplers import Engine, effort

    how_much = effort(sampler, quick)
    asked = list(draws.checks(sampler, how_much, seed))
    with contextlib.ExitStack() as stack:
        if isinstance(sampler, Engine):
            asked = [*exact.checks(sampler, how_much, seed), *asked]
            stack.enter_context(dispatch.use(sampler.name))
        return progress(asked, answer)


def answer(check: Check, tick: Tick) -> Finding:
    """The finding of a check; a sampler that raises is wrong."""
    try:
        return check.ask(tick)
    except (Exception, SystemExit) as error:  # a peer may do anything
        return Finding(False, " ".join(f"{type(error).__name__}: {error}".split()))
