"""The random stream in torch, the twin of csrc/philox.h: counter-based and stateless, so that a draw depends only on its
coordinates (seed, step, stream, token id), never on the batch, the launch shape or the device.

    key     = seed                                     64 bits
    counter = (index >> 2, step, stream)               32 + 32 + 64 bits
    stream  = use << 56 | sample << 40 | request id    8 + 16 + 40 bits
    word    = Philox4x32-10(counter, key)[index & 3]
    v       = 1 - (word + 0.5) * 2^-32                 in (0, 1), exact in float64; both tails keep all their bits
    noise   = -log(-log(v))                            Gumbel(0, 1)
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from .arguments import SEED, coordinate

# The use of a stream is its top 8 bits, so that no two uses share a word.
TOKEN, GROUP = 0, 1
SOFT_GUMBEL, SOFT_GAMMA, SOFT_BOOST = 2, 3, 4  # soft tokens: one Gumbel noise, or two uniforms, for each token id

GROUP_SIZE = 256  # consecutive token ids that share one noise in the first level of the draw

STREAM_BITS, SAMPLE_BITS = 40, 16  # request ids are in [0, 2^40), samples of one row in [0, 2^16)

_LOW32 = 0xFFFFFFFF


def philox4x32_10(counter: tuple[torch.Tensor, ...], key: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Four 32-bit words (in int64 tensors) for four counter words and two key words (Salmon et al., SC11)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The products may wrap around int64; the low 64 bits are still right, and the mask removes the sign.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW32) ^ c1 ^ k0, p1 & _LOW32, ((p0 >> 32) & _LOW32) ^ c3 ^ k1, p0 & _LOW32
        k0, k1 = (k0 + 0x9E3779B9) & _LOW32, (k1 + 0xBB67AE85) & _LOW32
    return c0, c1, c2, c3


def words(index: torch.Tensor, seed: torch.Tensor, step: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
    """The 32-bit word at each coordinate; all arguments are int64 and broadcast."""
    index, seed, step, stream = torch.broadcast_tensors(index, seed, step, stream)
    counter = (index >> 2, step & _LOW32, stream & _LOW32, (stream >> 32) & _LOW32)
    four = torch.stack(philox4x32_10(counter, (seed & _LOW32, (seed >> 32) & _LOW32)), dim=-1)
    return four.gather(-1, (index & 3).unsqueeze(-1)).squeeze(-1)


def noise(index: torch.Tensor, seed: torch.Tensor, step: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
    """Gumbel(0, 1) noise in float64, between -3.2 and 22.9."""
    return -torch.log(-torch.log(uniform(index, seed, step, stream)))


def uniform(index: torch.Tensor, seed: torch.Tensor, step: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
    """The v of each coordinate, in float64, between 2^-33 and 1 - 2^-33."""
    return ((0xFFFFFFFF - words(index, seed, step, stream)).double() + 0.5) * 2.0**-32  # int64 + 0.5 would be float32


def stream_for(use: int, sample: torch.Tensor | int, request: torch.Tensor) -> torch.Tensor:
    """The stream of one use and one sample of a request."""
    return (use << (STREAM_BITS + SAMPLE_BITS)) | (sample << STREAM_BITS) | (request & ((1 << STREAM_BITS) - 1))


def uniforms(
    use: int, ids: torch.Tensor, seed: torch.Tensor, step: torch.Tensor, streams: torch.Tensor
) -> torch.Tensor:
    """`uniform` for token ids [B, n] and coordinates [B]."""
    return uniform(ids, seed[:, None], step[:, None], stream_for(use, 0, streams)[:, None])


# ---- request ids of 64 bits ------------------------------------------------------------------------------------------

_UPPER = 0x9E3779B97F4A7C15  # odd, 2^64 over the golden ratio: its first 2^24 multiples lie 2^39 apart, modulo 2^64


def seed_and_streams(seed: int | torch.Tensor, ids: Any) -> tuple[int | torch.Tensor, int | torch.Tensor]:
    """A seed and a stream for request ids of 64 bits, such as hashes: the values of `seed=` and `streams=`.

        stream = id mod 2^40,    seed' = seed + (id >> 40) * 0x9E3779B97F4A7C15   mod 2^64

    Two ids of one seed never share coordinates, and an id below 2^40 draws as the stream of that number does. Nor do runs share
    coordinates if their seeds differ by less than 2^39. A text stands for a 64-bit hash of it (BLAKE2b, the same on every machine): of a million
    texts, two have the same hash with a chance of 3 in 10^8.

    Args:
        seed: as in `fastdecode.sample`.
        ids: a whole number of 64 bits, signed or not; a str (as UTF-8) or bytes; a list of them; or an int64 tensor, whose device
            the answers share.

    Returns:
        seed and streams: two numbers for one id, two int64 tensors for several.

    Raises:
        ValueError: an argument is not as described.
    """
    texts = [ids] if isinstance(ids, (str, bytes)) else ids
    if isinstance(texts, (list, tuple)):
        texts = [_hash(text) if isinstance(text, (str, bytes)) else text for text in texts]
        ids = texts[0] if isinstance(ids, (str, bytes)) else texts
    device = ids.device if isinstance(ids, torch.Tensor) else torch.device("cpu")
    checked = coordinate("ids", ids, None, SEED, device)
    batch = len(checked) if isinstance(checked, torch.Tensor) and checked.ndim else 1
    start = coordinate("seed", seed, batch, SEED, device)
    if isinstance(checked, int) and isinstance(start, int):
        mixed = (start + ((checked >> STREAM_BITS) & _HIGH) * _UPPER) % 2**64
        return mixed - 2**64 if mixed >= 2**63 else mixed, checked & _STREAM
    upper = (checked >> STREAM_BITS) & _HIGH
    return start + upper * (_UPPER - 2**64), checked & _STREAM  # int64 wraps around


_STREAM, _HIGH = (1 << STREAM_BITS) - 1, (1 << 64 - STREAM_BITS) - 1


def _hash(text: str | bytes) -> int:
    data = text.encode("utf-8") if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
