"""Nothing is timed that was not compared with the float64 reference first, by the judge of the tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import fastdecode as fd
from fastdecode.engines import reference
from fastdecode.record import Draw
from tests.support.judge import Verdict, check_values
from tests.support.tolerance import LEAD

from . import ours


@dataclass(frozen=True)
class Verified:
    """What the reference says about rows and a plan, and how well the engine agrees."""

    kept: torch.Tensor  # [B]: how many tokens survive
    tokens: torch.Tensor  # [B]: drawn with the streams 0 .. B-1
    tokens_alone: torch.Tensor  # [B]: drawn with stream 0, as a batch of one is
    edge_tokens: int  # tokens that the engine may judge and judges differently: they lie at an edge


def verify(x: torch.Tensor, plan: fd.Plan) -> Verified:
    """Raises AssertionError if masks, kept counts or tokens are wrong."""
    batch, vocab = x.shape
    cuts = plan.packed(x.device)
    edge_tokens, found = 0, []
    for start in range(0, batch, 8):  # float64 sorts of many rows take much memory
        part = x[start : start + 8]
        rows = reference.survivors(part, cuts, vocab)
        alone, lead_alone = reference.draw_tokens(
            rows, Draw(ours.SEED, ours.STEP, torch.zeros(len(part), dtype=torch.int64), 1, vocab)
        )
        streams = torch.arange(start, start + len(part))
        tokens, lead = reference.draw_tokens(rows, Draw(ours.SEED, ours.STEP, streams, 1, vocab))
        of = Verdict(part, plan, vocab, rows.keep, rows.status, {}, lead)
        differing = check_values(of, fd.truncate(part, plan))
        edge_tokens += differing
        # Where a token at an edge was judged differently, the draw may differ too.
        certain = torch.full((len(part), 1), differing == 0)
        found.append((rows.keep.sum(1), tokens, alone, certain & (lead >= LEAD), certain & (lead_alone >= LEAD)))
    kept, tokens, alone, sure, sure_alone = (torch.cat(column) for column in zip(*found))
    got = fd.sample(x, plan, seed=ours.SEED, step=ours.STEP)
    got_alone = torch.stack([fd.sample(row, plan, seed=ours.SEED, step=ours.STEP).tokens for row in x])
    assert not ((got.tokens != tokens[:, 0]) & sure[:, 0]).any(), f"{plan!r}: other tokens than the reference's"
    assert not ((got_alone != alone[:, 0]) & sure_alone[:, 0]).any(), f"{plan!r}: other tokens in a batch of one"
    assert edge_tokens or torch.equal(got.kept, kept), f"{plan!r}: other kept counts than the reference's"
    return Verified(kept, got.tokens, got_alone, edge_tokens)
