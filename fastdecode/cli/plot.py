"""`python -m fastdecode plot`: what each rule keeps of one row of logits, drawn over the row's probabilities by rank."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import ops
from ..plan import plan
from ..rules import Rule, min_p, temperature, top_h, top_k, top_p, typical_p
from . import generate

# Okabe and Ito's colours, which colour-blind people can tell apart, and their yellow darkened for a white page. Each goes with a
# marker of its own.
COLORS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D00")
MARKERS = "osD^vP*X"

USUAL = (top_k(50), top_p(0.95), min_p(0.05), typical_p(0.9), top_h(0.4), top_h(0.4, variant="hf"))
TEMPERATURES = (0.7, 1.0, 1.5, 2.0)
SWEEP = np.linspace(0.3, 3.0, 55)  # temperatures of the lower panel
LOWEST = 1e-9  # probabilities below are not shown
SHOWN = 50  # characters of a text in the title
MAX_PANELS = 16  # temperatures; more are too wide for a page


@dataclass(frozen=True)
class Row:
    """A row of logits, float [V], and what to call it."""

    logits: torch.Tensor
    name: str


@dataclass(frozen=True)
class Kept:
    """What a rule keeps of a row: the ranks from `first` to `last` (1 is the most probable token), and their mass."""

    first: int
    last: int
    mass: float

    @property
    def count(self) -> int:
        return self.last - self.first + 1


def check(rules: Sequence[Rule], temperatures: Sequence[float], path: str | None = None) -> None:
    """Can such a picture be drawn, and written there? Nothing is read or computed for the answer.

    Raises:
        ValueError: a temperature is 0, they or the rules are too many to tell apart, matplotlib is not installed, or does not
            know the end of the file's name.
    """
    generate.require(("matplotlib",), "plot")
    if not 1 <= len(rules) <= len(COLORS):
        raise ValueError(f"plot shows 1 to {len(COLORS)} rules; got {len(rules)}")
    if not temperatures or min(temperatures) <= 0:
        raise ValueError(f"plot needs temperatures above 0; got {list(temperatures)}")
    if len(temperatures) > MAX_PANELS:
        raise ValueError(f"plot shows 1 to {MAX_PANELS} temperatures; got {len(temperatures)}")
    if path is not None:
        from matplotlib.backend_bases import FigureCanvasBase

        known = sorted(FigureCanvasBase.get_supported_filetypes())
        if Path(path).suffix.lower().removeprefix(".") not in known:
            raise ValueError(f"--out must end in one of .{', .'.join(known)}; got {path!r}")


def row_of_file(path: str, number: int = 0) -> Row:
    """Row `number` of a file: .npy, or .safetensors with one tensor or one that is called logits; [V] or [B, V].

    Raises:
        ValueError: there is no such file or row, or it does not hold logits.
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
    rows = given.reshape(-1, given.shape[-1])
    if not 0 <= number < len(rows):
        raise ValueError(f"--row must be below {len(rows)}, the number of rows in {file.name}; got {number}")
    return Row(rows[number].float(), f"row {number} of {file.name}")


def _of_npy(file: Path) -> torch.Tensor:
    with _reading(file), open(file, "rb") as opened:
        array = np.lib.format.read_array(opened)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{str(file)!r} must hold an array of numbers; got {array.dtype}")
    with np.errstate(over="ignore"):  # inf is refused later
        return torch.from_numpy(array.astype(np.float32))  # a copy in the machine's own order of bytes


def _of_safetensors(file: Path) -> torch.Tensor:
    generate.require(("safetensors",), "plot")
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
    except Exception as error:  # whatever a library does with a file that is cut off, or is something else
        raise ValueError(f"{str(file)!r} cannot be read as {file.suffix}: {error}") from error


@torch.no_grad()
def row_after(loaded: generate.Loaded, text: str) -> Row:
    """The logits of the token that follows a text; the text goes to the model as it is."""
    inputs = generate.encode(loaded, text, 0)
    shown = text if len(text) <= SHOWN else "…" + text[-SHOWN:]
    return Row(loaded.model(input_ids=inputs["input_ids"]).logits[0, -1].float(), f"{loaded.name} after {shown!r}")


def kept(row: Row, rule: Rule, t: float) -> Kept:
    """What the rule keeps at a temperature."""
    chain = plan(temperature(t), rule)
    ranks = torch.argsort(row.logits, descending=True, stable=True)
    places = (ops.truncate(row.logits, chain)[ranks] > -torch.inf).nonzero().flatten()
    mass = ops.sample(row.logits, chain, seed=0, stats=("kept_mass",), check=True).kept_mass
    assert mass is not None and len(places) == places[-1] - places[0] + 1  # a rule keeps an interval of logits
    return Kept(int(places[0]) + 1, int(places[-1]) + 1, float(mass))


def kept_counts(row: Row, rule: Rule) -> torch.Tensor:
    """How many tokens the rule keeps at each temperature of SWEEP."""
    return ops.sample_temperatures(row.logits, SWEEP.tolist(), plan(rule), seed=0).kept


def picture(row: Row, rules: Sequence[Rule], temperatures: Sequence[float]) -> Any:
    """A matplotlib figure: for each temperature the row's probabilities and what each rule keeps, and the counts below.

    Raises:
        ValueError: the row cannot be drawn, or see `check`.
    """
    check(rules, temperatures)
    from matplotlib.figure import Figure

    if not bool((row.logits < torch.inf).all() and (row.logits > -torch.inf).any()):
        raise ValueError(
            f"plot needs finite logits, or -inf for some; {row.name} holds NaN or +inf, or nothing but -inf"
        )
    entropy = ops.sample(row.logits, seed=0, stats=("entropy",), check=True).entropy
    assert entropy is not None

    figure = Figure(figsize=(1.9 + 3.1 * max(2, len(temperatures)), 6.6 + 0.22 * len(rules)), layout="constrained")
    heights = (2.6, 0.4 + 0.25 * len(rules), 3.0)
    grid = figure.add_gridspec(3, len(temperatures), height_ratios=heights)
    for column, t in enumerate(temperatures):
        curve = figure.add_subplot(grid[0, column])
        lanes = figure.add_subplot(grid[1, column], sharex=curve)
        _curve(curve, row, t, labelled=column == 0)
        _lanes(lanes, row, rules, t, labelled=column == 0)
    _sweep(figure.add_subplot(grid[2, :]), row, rules, temperatures)
    told = f"V = {len(row.logits)}, entropy {float(entropy):.2f} nats at T = 1"
    figure.suptitle(f"What each rule keeps: {row.name}\n{told}", fontsize=11, parse_math=False)
    return figure


def save(figure: Any, path: str) -> None:
    """Write the picture; the end of the name says in which format.

    Raises:
        ValueError: matplotlib cannot write that.
    """
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise ValueError(f"--out must be a file that can be written; for {path!r} matplotlib says: {error}") from error


def _curve(panel: Any, row: Row, t: float, labelled: bool) -> None:
    probabilities = torch.softmax(row.logits.double() / float(t), 0).sort(descending=True).values.numpy()
    panel.plot(np.arange(1, len(probabilities) + 1), probabilities, color="dimgray", linewidth=2)
    panel.set(xscale="log", yscale="log", ylim=(LOWEST, 1.5), xlim=(0.8, 1.25 * len(probabilities)), title=f"T = {t:g}")
    panel.tick_params(labelbottom=False, labelleft=labelled)
    panel.grid(True, alpha=0.3)
    if labelled:
        panel.set_ylabel("probability")


def _lanes(panel: Any, row: Row, rules: Sequence[Rule], t: float, labelled: bool) -> None:
    """One bar a rule, over the ranks that it keeps; beside it how many they are, and their mass."""
    for place, (rule, color) in enumerate(zip(rules, COLORS)):
        found = kept(row, rule, t)
        low, high = found.first * 0.9, found.last * 1.1  # a bar of one token would have no width
        panel.barh(place, high - low, left=low, height=0.6, color=color)
        panel.annotate(
            f"{found.count} ({found.mass:.0%})", (1, place), (4, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    panel.set(xlabel="rank of the token", ylim=(len(rules) - 0.4, -0.6))
    panel.set_yticks(range(len(rules)), [repr(rule) for rule in rules] if labelled else [])
    panel.set_axisbelow(True)
    panel.grid(True, axis="x", alpha=0.3)
    panel.annotate("kept (mass)", (1, 1), (4, 3), xycoords="axes fraction", textcoords="offset points", fontsize=8)


def _sweep(panel: Any, row: Row, rules: Sequence[Rule], temperatures: Sequence[float]) -> None:
    for place, (rule, color, marker) in enumerate(zip(rules, COLORS, MARKERS)):
        panel.plot(
            SWEEP,
            kept_counts(row, rule),
            color=color,
            marker=marker,
            markersize=6,
            markevery=(place, 8),
            label=repr(rule),
        )
    for t in temperatures:
        panel.axvline(t, color="dimgray", linewidth=1, linestyle=":")
    panel.set(
        yscale="log",
        xlabel="temperature",
        ylabel="tokens kept",
        xlim=(SWEEP[0], SWEEP[-1]),
        ylim=(0.8, 1.25 * len(row.logits)),
    )
    panel.grid(True, alpha=0.3)
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
