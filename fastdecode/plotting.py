"""`fastdecode.plot`: the probabilities of one row by rank, the edge of each plan on them, and what it keeps.

Rows and rules are drawn only here; `python -m fastdecode plot` calls it. A rule's place in `RULES` decides its colour in every
picture, so a new rule at the end of `RULES` takes the next colour and changes no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import arguments, ops
from .plan import Plan, PlanLike, as_plan
from .rules import RULES, Rule, temperature

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours without yellow, which is too pale on white; then five that colour-blind readers can tell from them. A plan of several rules has no colour of its own.
COLORS = (
    "#D55E00", "#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7",
    "#56B4E9", "#882255", "#8C6D00", "#332288", "#44AA99", "#999933",
)  # fmt: skip
MARKERS = "osD^vP*Xhdp8"
CHAIN = "#707070"
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))  # plans that share a colour, in turn

SWEEP = np.linspace(0.3, 3.0, 55)  # temperatures of the lower panel
LOWEST = 1e-9  # probabilities below are not shown
MAX_PANELS = 16  # temperatures; more are too wide for a page
NAMED_APART = 0.16  # inches between the names on the curve
PRINTED = 0x0530  # characters below are in matplotlib's own font; others are shown as escapes


def plot(
    logits: torch.Tensor | np.ndarray[Any, Any],
    plans: PlanLike | Sequence[Plan | Rule],
    tokenizer: Any = None,
    *,
    title: str = "",
    sweep: bool = False,
) -> Figure:
    """Draw one row of logits: its probabilities by rank, the edge of each plan, and what each plan keeps.

    There is one panel for each temperature that the plans begin with, and 1 for plans that begin with another rule. In a panel, a
    marker stands on the curve at the last token that a plan keeps (and at the first one, if that is not the most probable
    token). The bar below it covers the ranks that the plan keeps; beside it stand their number and their mass.

        figure = fd.plot(logits[0], [fd.top_p(0.9), fd.min_p(0.05)], tokenizer)
        figure.savefig("kept.png")

    A rule has the same colour in every picture. Plans of the same rule differ by the dashes of their lines.

    Args:
        logits: one row, [V]; the types that `sample` takes, and float64.
        plans: a plan or a rule, or a list of them; each is drawn by itself.
        tokenizer: has `decode([id])`; then tokens are named on the curve, and below it those that each plan keeps: the first
            ones and the last. Without one, no tokens are named.
        title: the first line of the title.
        sweep: also draw the number of tokens that each plan keeps against the temperature.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the row holds NaN or +inf, or nothing but -inf; or the plans are too many to tell apart, or begin with a
            temperature of 0.
    """
    panels = arrange(plans)
    row = _row(logits)
    from matplotlib.figure import Figure

    drawn = _distinct(chain for chains in panels.values() for chain in chains)
    styles = looks(drawn)
    width = 1.9 + 3.1 * max(2, len(panels))
    heights = [2.9, 0.4 + 0.25 * len(drawn)]
    heights += [0.2 + 0.19 * len(drawn)] if tokenizer is not None else []
    heights += [3.0] if sweep else []
    figure = Figure(figsize=(width, 1.1 + 1.08 * sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), len(panels), height_ratios=heights)
    room = (width - 2.6) / len(panels)  # inches for a panel, about
    for column, (t, chains) in enumerate(panels.items()):
        first = column == 0
        curve = figure.add_subplot(grid[0, column])
        lanes = figure.add_subplot(grid[1, column], sharex=curve)
        kept_here = {chain: kept(row, chain, t) for chain in chains}
        _curve(curve, row, t, tokenizer, room, labelled=first)
        _edges(curve, row, t, kept_here, styles)
        _lanes(lanes, drawn, kept_here, styles, labelled=first)
        if tokenizer is not None:
            names = figure.add_subplot(grid[2, column])
            _names(names, row, drawn, kept_here, tokenizer, letters=int(17 * room), labelled=first)
    if sweep:
        _sweep(figure.add_subplot(grid[-1, :]), row, drawn, styles, panels)
    entropy = ops.sample(row, seed=0, stats=("entropy",), check=True).entropy
    assert entropy is not None
    told = f"V = {len(row)}, entropy {float(entropy):.2f} nats at T = 1"
    figure.suptitle("\n".join(filter(None, (title, told))), fontsize=11, parse_math=False)
    return figure


def arrange(plans: PlanLike | Sequence[Plan | Rule]) -> dict[float, list[Plan]]:
    """The plans by the temperature they begin with, each without that temperature.

    Raises:
        ImportError, ValueError: as `plot`, without a look at the logits.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("plot draws with matplotlib, which is not installed: pip install matplotlib.") from error
    panels: dict[float, list[Plan]] = {}
    for each in plans if isinstance(plans, (list, tuple)) else [plans]:
        chain, t = as_plan(each), 1.0
        if chain.rules and isinstance(chain.rules[0].temperature, (int, float)):
            t, chain = float(chain.rules[0].temperature), Plan(chain.rules[1:])
        panels.setdefault(t, []).append(chain)
    if not panels:
        raise ValueError("plot draws one plan or more; got none.")
    if min(panels) <= 0:
        raise ValueError(f"plot needs temperatures above 0; got {[_short(t) for t in panels]}")
    if len(panels) > MAX_PANELS:
        raise ValueError(f"plot shows 1 to {MAX_PANELS} temperatures; got {len(panels)}")
    looks(_distinct(chain for chains in panels.values() for chain in chains))
    return panels


@dataclass(frozen=True)
class Kept:
    """The tokens that a plan keeps of a row: the ranks from `first` to `last`, 1 for the most probable one, and their mass."""

    first: int
    last: int
    mass: float

    @property
    def count(self) -> int:
        return self.last - self.first + 1


def kept(row: torch.Tensor, chain: PlanLike, t: float) -> Kept:
    """The tokens that the plan keeps after this temperature."""
    after = as_plan(chain).at(t)
    places = (ops.truncate(row, after)[_ranked(row)] > -torch.inf).nonzero().flatten()
    mass = ops.sample(row, after, seed=0, stats=("kept_mass",), check=True).kept_mass
    assert mass is not None and len(places) == places[-1] - places[0] + 1  # a plan keeps an interval of logits
    return Kept(int(places[0]) + 1, int(places[-1]) + 1, float(mass))


def kept_counts(row: torch.Tensor, chain: PlanLike) -> torch.Tensor:
    """The number of tokens that the plan keeps at each temperature of SWEEP."""
    return ops.sample_temperatures(row, SWEEP.tolist(), as_plan(chain), seed=0).kept


@dataclass(frozen=True)
class Look:
    """How a plan is drawn."""

    color: str
    marker: str
    dashes: Any


def look(chain: Plan, turn: int = 0) -> Look:
    """A single rule's look follows from its place in RULES. `turn`: the index among plans of one colour."""
    names = [rule.__name__ for rule in RULES if rule is not temperature]
    if len(chain.rules) == 1 and chain.rules[0].name in names:
        place = names.index(chain.rules[0].name)
        return Look(COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)], DASHES[turn])
    return Look(CHAIN, "8", DASHES[turn])


def looks(drawn: Sequence[Plan]) -> dict[Plan, Look]:
    """The look of each plan in a picture that shows them all.

    Raises:
        ValueError: too many of them share a colour.
    """
    styles: dict[Plan, Look] = {}
    for chain in drawn:
        turn = sum(other.color == look(chain).color for other in styles.values())
        if turn == len(DASHES):
            what = chain.rules[0].name if len(chain.rules) == 1 else "several rules"
            more = sum(look(other).color == look(chain).color for other in drawn)
            raise ValueError(
                f"plot can tell {len(DASHES)} plans of {what} apart; got {more}: draw fewer in one picture."
            )
        styles[chain] = look(chain, turn)
    return styles


def _row(logits: Any) -> torch.Tensor:
    """float32 [V] on the CPU."""
    array = arguments.from_numpy("logits", logits) if isinstance(logits, np.ndarray) else logits
    rows = arguments.rows(array, exact=True)
    if len(rows) != 1:
        raise ValueError(
            f"plot draws one row, logits of shape [V]; got {list(array.shape)}: logits[0] is the first row."
        )
    row = rows[0].detach().float().cpu()
    if not bool((row < torch.inf).all() and (row > -torch.inf).any()):
        raise ValueError("plot needs finite logits, or -inf for some; got NaN or +inf, or nothing but -inf.")
    return row


def _ranked(row: torch.Tensor) -> torch.Tensor:
    """The ids, the most probable one first."""
    return torch.argsort(row, descending=True, stable=True)


def _probabilities(row: torch.Tensor, t: float) -> np.ndarray[Any, Any]:
    """By rank, float64."""
    return np.asarray(torch.softmax(row.double() / t, 0).sort(descending=True).values)


def _distinct(chains: Iterable[Plan]) -> list[Plan]:
    return list(dict.fromkeys(chains))


def _short(t: float) -> float | int:
    return int(t) if t == int(t) else t


def label(chain: Plan) -> str:
    """The plan as it was written."""
    return ", ".join(map(repr, chain.rules)) or "no rule"


def _written(tokenizer: Any, token: int) -> str:
    """A token with a dot for each space, and escapes for what the font lacks."""
    text = repr(tokenizer.decode([token]))[1:-1].replace(" ", "·")
    return "".join(c if ord(c) < PRINTED else ascii(c)[1:-1] for c in text)


# ---- panels ----------------------------------------------------------------------------------------------------------


def _curve(panel: Axes, row: torch.Tensor, t: float, tokenizer: Any, room: float, labelled: bool) -> None:
    p = _probabilities(row, t)
    panel.plot(np.arange(1, len(p) + 1), p, color="#B0B0B0", linewidth=2.5, zorder=1)
    lowest = max(LOWEST, 0.3 * float(p[p > 0].min()))
    panel.set(xscale="log", yscale="log", ylim=(lowest, 1.5), xlim=(0.8, 1.25 * len(p)), title=f"T = {t:g}")
    panel.tick_params(labelbottom=False, labelleft=labelled)
    panel.grid(True, alpha=0.3)
    if labelled:
        panel.set_ylabel("probability")
    if tokenizer is None:
        return
    panel.set_ylim(lowest, 1.5 * (1.5 / lowest) ** 0.22)  # room for the names above the curve
    ids, rank, apart = _ranked(row), 1, (1.6 * len(p)) ** (NAMED_APART / room)
    while rank <= len(p) and p[rank - 1] > lowest:
        name = _written(tokenizer, int(ids[rank - 1]))
        panel.annotate(
            name if len(name) <= 16 else name[:15] + "…", (rank, p[rank - 1]), (1, 5), textcoords="offset points",
            rotation=50, rotation_mode="anchor", fontsize=7, color="#404040", parse_math=False, clip_on=True,
        )  # fmt: skip
        rank = max(rank + 1, round(rank * apart))


def _edges(panel: Axes, row: torch.Tensor, t: float, kept_here: dict[Plan, Kept], styles: dict[Plan, Look]) -> None:
    """From the curve down to the bars: a line at the last rank that is kept, and at the first if it is not 1."""
    p = _probabilities(row, t)
    low = panel.get_ylim()[0]
    for chain, interval in kept_here.items():
        style = styles[chain]
        for rank in {interval.first, interval.last} - {1} | {interval.last}:
            panel.plot([rank, rank], [low, p[rank - 1]], color=style.color, linestyle=style.dashes, linewidth=1.2)
            panel.plot(
                rank, p[rank - 1], marker=style.marker, color=style.color, markersize=8, markeredgecolor="white", markeredgewidth=0.6,
                linestyle="", zorder=3,
            )  # fmt: skip


def _lanes(
    panel: Axes, drawn: list[Plan], kept_here: dict[Plan, Kept], styles: dict[Plan, Look], labelled: bool
) -> None:
    """One bar a plan, over the ranks that it keeps; their number and mass are written beside it."""
    for place, chain in enumerate(drawn):
        if chain not in kept_here:
            continue
        interval = kept_here[chain]
        low, high = interval.first * 0.9, interval.last * 1.1  # a bar of one token would have no width
        panel.barh(place, high - low, left=low, height=0.6, color=styles[chain].color)
        panel.annotate(
            f"{interval.count} ({interval.mass:.0%})", (1, place), (4, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    panel.set(xlabel="rank of the token", ylim=(len(drawn) - 0.4, -0.6))
    panel.set_yticks(range(len(drawn)), [label(chain) for chain in drawn] if labelled else [])
    panel.set_axisbelow(True)
    panel.grid(True, axis="x", alpha=0.3)
    panel.annotate("kept (mass)", (1, 1), (4, 3), xycoords="axes fraction", textcoords="offset points", fontsize=8)


def _names(
    panel: Axes, row: torch.Tensor, drawn: list[Plan], kept_here: dict[Plan, Kept], tokenizer: Any, letters: int, labelled: bool
) -> None:  # fmt: skip
    """One line a plan: the tokens that it keeps, the most probable one first. If they do not all fit, the last one is shown too."""
    ids = _ranked(row)
    for place, chain in enumerate(drawn):
        if chain in kept_here:
            interval = kept_here[chain]
            shown = listed([int(token) for token in ids[interval.first - 1 : interval.last]], tokenizer, letters)
            text = panel.text(0, place, shown, fontsize=7, va="center", family="monospace", parse_math=False)
            text.set_in_layout(False)  # a wide name does not make the panel narrow
    panel.set(xlim=(0, 1), ylim=(len(drawn) - 0.4, -0.6))
    panel.spines[:].set_visible(False)
    panel.tick_params(left=False, bottom=False, labelbottom=False)
    panel.set_yticks(range(len(drawn)), [label(chain) for chain in drawn] if labelled else [])


def listed(tokens: list[int], tokenizer: Any, letters: int) -> str:
    """The names of the tokens in at most `letters` characters; if they do not fit, the first ones, dots, and the last one."""
    names: list[str] = []
    last = _written(tokenizer, tokens[-1])
    for token in tokens:
        names.append(_written(tokenizer, token))
        if len(" ".join(names)) > letters:
            break
    else:
        return " ".join(names)
    while len(names) > 1 and len(" ".join([*names, "…", last])) > letters:
        names.pop()
    return " ".join([*names, "…", last])


def _sweep(panel: Axes, row: torch.Tensor, drawn: list[Plan], styles: dict[Plan, Look], ts: Iterable[float]) -> None:
    for place, chain in enumerate(drawn):
        style = styles[chain]
        panel.plot(
            SWEEP, kept_counts(row, chain), color=style.color, marker=style.marker, linestyle=style.dashes, markersize=6,
            markevery=(place % 8, 8), label=label(chain),
        )  # fmt: skip
    for t in ts:
        panel.axvline(t, color="dimgray", linewidth=1, linestyle=":")
    limits = (float(SWEEP[0]), float(SWEEP[-1]))
    panel.set(yscale="log", xlabel="temperature", ylabel="tokens kept", xlim=limits, ylim=(0.8, 1.25 * len(row)))
    panel.grid(True, alpha=0.3)
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
