"""`python -m fastdecode plot`: reads the row, chooses the rules, and writes the file; `plotting.py` draws."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import plotting
from ..plan import Plan, plan
from ..rules import Rule, min_p, temperature, top_h, top_k, top_p, typical_p
from . import generate

USUAL = (top_k(50), top_p(0.95), min_p(0.05), typical_p(0.9), top_h(0.4), top_h(0.4, variant="hf"))
TEMPERATURES = (0.7, 1.0, 1.5, 2.0)
SHOWN = 50  # characters of a text in the title


@dataclass(frozen=True)
class Row:
    """A row of logits, float [V], its name, and its tokenizer."""

    logits: torch.Tensor
    name: str
    tokenizer: Any = None


def at_each(rules: Sequence[Rule], temperatures: Sequence[float]) -> list[Plan]:
    """Each rule after each temperature."""
    return [plan(temperature(t), rule) for t in temperatures for rule in rules]


def check(rules: Sequence[Rule], temperatures: Sequence[float], path: str | None = None) -> None:
    """Check, without reading or computing anything, that the picture can be drawn and written.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a temperature is 0, they or the rules are too many to tell apart, or matplotlib does not know the end of
            the file's name.
    """
    if len(temperatures) > plotting.MAX_PANELS:  # also where some are equal
        raise ValueError(f"plot shows 1 to {plotting.MAX_PANELS} temperatures; got {len(temperatures)}")
    plotting.arrange(at_each(rules, temperatures))
    if path is not None:
        from matplotlib.backend_bases import FigureCanvasBase

        known = sorted(FigureCanvasBase.get_supported_filetypes())
        if Path(path).suffix.lower().removeprefix(".") not in known:
            raise ValueError(f"--out must end in one of .{', .'.join(known)}; got {path!r}")


def row_of_file(path: str, number: int = 0) -> Row:
    """Row `number` of a file, see `rows_of_file`.

    Raises:
        ValueError: there is no such file or row, or it does not hold logits.
    """
    rows, name = rows_of_file(path), Path(path).name
    if not 0 <= number < len(rows):
        raise ValueError(f"--row must be below {len(rows)}, the number of rows in {name}; got {number}")
    row = rows[number].float()
    check_finite(row[None], path, number)
    return Row(row, f"row {number} of {name}")


def rows_of_file(path: str) -> torch.Tensor:
    """Logits [B, V] of a file: .npy, or .safetensors with one tensor or one that is called logits; [V] is a single row.

    Raises:
        ValueError: there is no such file, or it does not hold logits.
    """
    file = Path(path)
    if file.suffix not in (".npy", ".safetensors"):
        raise ValueError(f"--logits must be a .npy or .safetensors file; got {path!r}")
    if not file.is_file():
        raise ValueError(f"--logits must name a file; there is none at {path!r}")
    given = _of_npy(file) if file.suffix == ".npy" else _of_safetensors(file)
    if given.ndim not in (1, 2) or not given.numel() or given.is_complex() or given.dtype == torch.bool:
        raise ValueError(
            f"{path!r} must hold logits, numbers of shape [V] or [B, V]; got {given.dtype} of shape {list(given.shape)}"
        )
    return given.reshape(-1, given.shape[-1])


def check_finite(rows: torch.Tensor, path: str, first: int = 0) -> None:
    """`rows`, float [B, V], are those of a file from number `first` on.

    Raises:
        ValueError: a row holds NaN or +inf, or nothing but -inf.
    """
    bad = ~((rows < torch.inf).all(1) & (rows > -torch.inf).any(1))
    if bad.any():
        raise ValueError(
            f"--logits must hold finite logits, or -inf for some; row {first + int(bad.nonzero()[0])} of {path!r} holds NaN or +inf, or "
            "nothing but -inf"
        )


def _of_npy(file: Path) -> torch.Tensor:
    with _reading(file), open(file, "rb") as opened:
        array = np.lib.format.read_array(opened)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{str(file)!r} must hold an array of numbers; got {array.dtype}")
    with np.errstate(over="ignore"):  # inf is refused later
        return torch.from_numpy(array.astype(np.float32))  # a copy in the machine's own order of bytes


def _of_safetensors(file: Path) -> torch.Tensor:
    generate.require(("safetensors",), "--logits")
    from safetensors.torch import load_file

    with _reading(file):
        tensors = load_file(file)
    name = "logits" if "logits" in tensors else next(iter(tensors), "")
    if name != "logits" and len(tensors) != 1:
        raise ValueError(f"{str(file)!r} must hold a tensor called logits, or only one; got {sorted(tensors)}")
    return tensors[name]


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a library may raise anything for a truncated file, or one of another kind
        raise ValueError(f"{str(file)!r} cannot be read as {file.suffix}: {error}") from error


@torch.no_grad()
def row_after(loaded: generate.Loaded, text: str) -> Row:
    """The logits of the token that follows a text; the text goes to the model as it is."""
    inputs = generate.encode(loaded, text, 0)
    shown = text if len(text) <= SHOWN else "…" + text[-SHOWN:]
    return Row(
        loaded.model(input_ids=inputs["input_ids"]).logits[0, -1].float(),
        f"{loaded.name} after {shown!r}",
        loaded.tokenizer,
    )


def picture(row: Row, rules: Sequence[Rule], temperatures: Sequence[float]) -> Any:
    """A matplotlib figure: a panel for each temperature, and the number of tokens kept against the temperature below.

    Raises:
        ImportError, ValueError: see `fastdecode.plot`.
    """
    title = f"What each rule keeps: {row.name}"
    return plotting.plot(row.logits, at_each(rules, temperatures), row.tokenizer, title=title, sweep=True)


def save(figure: Any, path: str) -> None:
    """Write the picture, in the format of the file name's extension.

    Raises:
        ValueError: matplotlib cannot write that.
    """
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise ValueError(f"--out must be a file that can be written; for {path!r} matplotlib says: {error}") from error
