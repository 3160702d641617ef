"""Time against V, the engine in reads of the row, the peers over the engine; and the README's picture of the speed."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from fastdecode import plotting

from ..plans import BY_NAME, RULES
from ..records import Results
from .grid import V_MAIN, VOCABULARIES

SHOWN = ("none", "min_p .05", "top_p .95", "typical .9", "top_h .4")
PEERS = {"hf": ("transformers", "tab:orange"), "torch": ("plain torch", "tab:red"), "torch, cumsum": ("plain torch, drawn by cumsum", "tab:brown"), "numpy": ("numpy", "tab:green"),
         "llama.cpp": ("llama.cpp", "tab:purple")}  # fmt: skip
TEMPERATURES = (1.0, 2.0)


def draw(results: Results) -> None:
    for name, picture in (("sizes", _sizes), ("reads", _reads), ("peers", _peers)):
        figure = picture(results)
        figure.savefig(results.plot(name), dpi=110, metadata={"Software": None})
        plt.close(figure)


def draw_speed(results: Results, path: Path) -> None:
    figure = speed(results)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def speed(results: Results) -> plt.Figure:
    """For five rules, transformers' time over ours: over the engine alone, and over the whole call."""
    figure, panel = plt.subplots(figsize=(8.4, 3.9), layout="constrained")
    ways = (
        ("the C++ engine alone", "peers_over_engine", "#0072B2"),
        ("the call fd.sample(...)", "peers_over_call", "#E69F00"),
    )
    for turn, (label, field, color) in enumerate(ways):
        for place, rule in enumerate(SHOWN):
            record = results.one(rule=rule)
            over = None if record is None else record[field].get("hf")
            if over is not None:
                y = place + (turn - 0.5) * 0.38
                panel.barh(y, over, 0.36, color=color, label=label if place == 0 else None)
                panel.annotate(f"{over:.0f}x", (over, y), (4, 0), textcoords="offset points", va="center", fontsize=10)
    panel.set_yticks(range(len(SHOWN)), [plotting.label(BY_NAME[rule].plan(1)) for rule in SHOWN], fontsize=11)
    panel.invert_yaxis()
    panel.margins(x=0.1)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_xlabel("transformers' time from logits to a token, over that of")
    panel.legend(loc="lower right", frameon=False)
    panel.set_title(f"V = {V_MAIN}, T = 1, one row at a time\n{_caption(results)}", fontsize=9)
    return figure


def _caption(results: Results) -> str:
    first = results.records[0]
    changed = " and changes" if first["dirty"] else ""
    return f"{first['machine']['cpu']}, {first['instruction_set']}, one thread, float32, commit {first['commit'][:8]}{changed}"


def _sizes(results: Results) -> plt.Figure:
    figure, panels = plt.subplots(1, 2, figsize=(11, 5.6), sharey=True, layout="constrained")
    colors = {rule: plotting.look(BY_NAME[rule].plan(1)).color for rule in SHOWN}
    for panel, temperature in zip(panels, TEMPERATURES):
        for rule, color in colors.items():
            for source, style in (("engine", "-o"), ("hf", "--s")):
                _curve(panel, results, rule, temperature, source, style, color=color, markersize=4)
        _curve(panel, results, "none", temperature, "one read", "-", color="black", linewidth=2.5)
        _curve(panel, results, "none", temperature, "exp pass", ":", color="black", linewidth=2)
        panel.set(xscale="log", yscale="log", xlabel="V", title=f"T = {temperature:g}")
        panel.set_xticks(VOCABULARIES, [f"{v / 1000:.0f}k" for v in VOCABULARIES], rotation=45)
        panel.minorticks_off()
        panel.grid(True, alpha=0.3)
    panels[0].set_ylabel("µs per row, logits to token, B = 1")
    handles = [Line2D([], [], color=color, label=rule) for rule, color in colors.items()]
    handles += [
        Line2D([], [], color="dimgray", linestyle="-", marker="o", markersize=4, label="fastdecode's engine"),
        Line2D([], [], color="dimgray", linestyle="--", marker="s", markersize=4, label="transformers' step"),
        Line2D([], [], color="black", linestyle=":", linewidth=2, label="max and sum of exp"),
        Line2D([], [], color="black", linewidth=2.5, label="one read"),
    ]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    figure.suptitle(f"Time against the vocabulary\n{_caption(results)}", fontsize=10)
    return figure


def _curve(
    panel: plt.Axes, results: Results, rule: str, temperature: float, source: str, style: str, **look: object
) -> None:
    points = []
    for vocab in VOCABULARIES:
        record = results.one(rule=rule, T=temperature, V=vocab)
        if record is not None and source in record["us_per_row"]:
            points.append((vocab, record["us_per_row"][source]["median"]))
    panel.plot(*zip(*points), style, **look) if points else None


def _reads(results: Results) -> plt.Figure:
    figure, panel = plt.subplots(figsize=(9, 6.4), layout="constrained")
    names = [case.name for case in RULES if results.one(rule=case.name)]
    for shift, temperature, color in ((-0.2, 1.0, "tab:blue"), (0.2, 2.0, "tab:orange")):
        for place, rule in enumerate(names):
            record = results.one(rule=rule, T=temperature)
            if record is None:
                continue
            ratio, slowest = record["ratio_to_read"], record["slowest_row_ratio_to_read"]
            panel.barh(place + shift, ratio, 0.38, color=color, label=f"T = {temperature:g}" if place == 0 else None)
            panel.plot(slowest, place + shift, "o", color="black", markersize=4)
            panel.annotate(
                f"{ratio:.1f}", (ratio, place + shift), (-3, 0), textcoords="offset points",
                ha="right", va="center", fontsize=8, color="white",
            )  # fmt: skip
    read = results.one(rule=names[0])
    exp = read["us_per_row"]["exp pass"]["median"] / read["us_per_row"]["one read"]["median"]
    panel.axvline(1, color="black", linewidth=1)
    panel.axvline(exp, color="black", linewidth=1, linestyle=":", label="max and sum of exp")
    panel.plot([], [], "o", color="black", markersize=4, label="slowest row")
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set(xscale="log", xlabel="time over one read of the row (bar and number: the median of the rows)")
    panel.set_xlim(0.7, 1.3 * panel.get_xlim()[1])
    panel.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    panel.minorticks_off()
    panel.grid(True, axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    panel.set_title(f"Logits to token, V = {V_MAIN}, B = 1\n{_caption(results)}", fontsize=10)
    return figure


def _peers(results: Results) -> plt.Figure:
    figure, panels = plt.subplots(1, 2, figsize=(11, 9), sharey=True, sharex=True, layout="constrained")
    names = [case.name for case in RULES if results.one(rule=case.name)]
    there = [peer for peer in PEERS if any(peer in r.get("peers_over_engine", {}) for r in results.records)]
    height = 0.8 / max(1, len(there))
    for panel, temperature in zip(panels, TEMPERATURES):
        for place, rule in enumerate(names):
            record = results.one(rule=rule, T=temperature)
            over = {} if record is None else record["peers_over_engine"]
            for turn, peer in enumerate(there):
                if peer not in over:
                    continue
                y = place + (turn - (len(there) - 1) / 2) * height
                panel.barh(y, over[peer], height * 0.92, color=PEERS[peer][1])
                panel.annotate(
                    f"{over[peer]:.0f}", (over[peer], y), (3, 0), textcoords="offset points", va="center", fontsize=6.5
                )
        panel.set(xscale="log", xlabel="peer's time / engine's time", title=f"T = {temperature:g}")
        panel.grid(True, axis="x", alpha=0.3)
        panel.axvline(1, color="black", linewidth=1)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    panels[0].set_xlim(0.8, 4 * panels[0].get_xlim()[1])
    handles = [plt.Rectangle((0, 0), 1, 1, color=PEERS[peer][1], label=PEERS[peer][0]) for peer in there]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(there) or 1, frameon=False)
    figure.suptitle(f"Peers over the engine, logits to token, V = {V_MAIN}, B = 1\n{_caption(results)}", fontsize=10)
    return figure
