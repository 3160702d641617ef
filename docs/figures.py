"""Draws docs/cuts.png: what three cuts keep of ten tokens.

python docs/figures.py [FOLDER]     default: this one. kept.png comes from `python -m fastdecode plot`, see choosing.md
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot

import fastdecode as fd

KEPT, REMOVED, LINE = "#0072B2", "#D0D0D0", "#D55E00"
P = torch.tensor([0.30, 0.22, 0.15, 0.11, 0.08, 0.05, 0.04, 0.025, 0.015, 0.01])
ENTROPY = float(-(P * P.log()).sum())

figure, (floor, prefix, typical) = pyplot.subplots(1, 3, figsize=(12, 3.9), sharey=True, layout="constrained")
for panel, rule in ((floor, fd.min_p(0.15)), (prefix, fd.top_p(0.8)), (typical, fd.typical_p(0.4))):
    stays = fd.truncate(P.log(), fd.plan(rule)) > -torch.inf
    for rank, (p, kept) in enumerate(zip(P.tolist(), stays.tolist()), 1):
        panel.bar(rank, p, color=KEPT if kept else REMOVED, hatch=None if kept else "///", edgecolor="white")
    panel.set(xlabel="rank of the token", xticks=range(1, 11), ylim=(0, 0.36))
    panel.spines[["top", "right"]].set_visible(False)

bound = 0.15 * float(P[0])
floor.set_title("floor: min_p(0.15)\nkeep what is above the line")
floor.axhline(bound, color=LINE, linewidth=2)
floor.annotate(f"0.15 x 0.30 = {bound:.3f}", (10.4, bound), (0, 5), textcoords="offset points", ha="right", color=LINE)
floor.set_ylabel("probability")

prefix.set_title("prefix by logit: top_p(0.8)\nadd up mass until it is 0.8")
for rank, mass in enumerate(P.cumsum(0).tolist()[:6], 1):
    prefix.annotate(
        f"{mass:.2f}", (rank, float(P[rank - 1])), (0, 3), textcoords="offset points", ha="center", fontsize=8
    )

typical.set_title("prefix by typicality: typical_p(0.4)\nadd up mass, from -ln p = H outwards")
centre = float(torch.tensor(-ENTROPY).exp())
typical.axhline(centre, color=LINE, linewidth=2)
typical.annotate(f"exp(-H) = {centre:.3f}", (10.4, centre), (0, 5), textcoords="offset points", ha="right", color=LINE)
order = (-P.log() - ENTROPY).abs().argsort().tolist()
for place, token in enumerate(order[:5], 1):
    typical.annotate(
        f"{place}.", (token + 1, float(P[token])), (0, 3), textcoords="offset points", ha="center", fontsize=8
    )

figure.legend(
    handles=[pyplot.Rectangle((0, 0), 1, 1, color=KEPT, label="survivors"),
             pyplot.Rectangle((0, 0), 1, 1, facecolor=REMOVED, hatch="///", edgecolor="white", label="removed")],
    loc="outside lower center", ncols=2, frameon=False,
)  # fmt: skip
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
figure.savefig(folder / "cuts.png", dpi=100, metadata={"Software": None})
