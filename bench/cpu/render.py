"""From the lines of JSON to the tables of docs/results.md and of results/*.md, and to plots. No figure is written anywhere else.

python -m bench.cpu.render [RESULTS.jsonl]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import RESULTS, page
from ..plans import RULES
from ..records import PLOTS, Results, newest, others_busy, read, share
from ..rows import JITTER, OFFSET, SYNTHETIC
from .goals import goals
from .grid import MAIN, V_MAIN, VOCABULARIES

MARKERS = page.markers("bench", "make bench")
SPEED = RESULTS / "speed.png"  # the README's picture


def number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *body))


def us(record: dict, name: str) -> float | None:
    return record["us_per_row"].get(name, {}).get("median")


# ---- docs/results.md -----------------------------------------------------------------------------------------------


def where_from(results: Results) -> str:
    """The machine, the versions, and where the rest is."""
    first = results.records[0]
    machine = first["machine"]
    changed = ", with changes that were not committed" if first["dirty"] else ""
    at_once = " Rows were timed back to back, so the branch predictor had learned them."
    known = "" if first.get("rows_in_turn") else at_once
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {first['instruction_set']}; {machine['compiler']}, torch {machine['torch']}, "
        f"transformers {machine['transformers']}, llama.cpp {machine['llama.cpp']}; commit {first['commit'][:12]}{changed}. "
        f"Other programs took {share(others_busy(results.records))} of the machine meanwhile.{known} "
        f"All figures: [{results.path.name}]({page.link(results.path)}); more tables: [{results.tables.name}]({page.link(results.tables)})."
    )


def section(results: Results) -> str:
    told = (
        f"From logits to a token, V = {V_MAIN}, float32, one row at a time, one thread, microseconds per row: the median over the rows. "
        "**Engine** is the C++ time. **`fd.sample`** is the whole Python call. **Reads** is the engine's time over that of one read of the row "
        "(its largest element, in the same minute); **slowest** is the same for the slowest row. **Step** is transformers' way to the same "
        "token: its warpers, softmax and `torch.multinomial`. All candidates see the rows in turn, because a model gives a new row at each "
        "step. Each row is read once before it is timed, because logits that were just written are in a cache.\n\n"
        f"Rows of this size are stand-ins: rows of SmolLM2-135M (V = 49152), continued by copies of themselves. Each copy is {OFFSET:g} nats "
        f"lower than the one before, with noise of {JITTER:g}. At T = 2 rows are flat, and many tokens survive."
    )
    parts = [where_from(results), told]
    for temperature in (1.0, 2.0):
        parts.append(f"**T = {temperature:g}**\n\n{main_table(results, temperature)}")
    remarks = sorted({r["remark"] for r in results.records if r.get("remark")})
    parts += [f"In rows with `top_h .4`: {remark}." for remark in remarks]
    parts += [f"![{alt}]({page.link(results.plot(name))})" for name, alt in PLOTS.items()]
    parts.append("**Goals**, as they were set before this was written:\n\n" + goals_table(results))
    return "\n\n".join(parts)


def other_section(results: Results) -> str:
    """An earlier run on another kind of machine, folded away."""
    tables = "\n\n".join(f"**T = {t:g}**\n\n{main_table(results, t)}" for t in (1.0, 2.0))
    told = f"{where_from(results)}\n\n{tables}\n\n{goals_table(results)}"
    kind = f"{results.records[0]['machine']['cpu']}, {results.records[0]['instruction_set']}"
    return f"<details><summary>The same on another machine: {kind}</summary>\n\n{told}\n\n</details>"


def main_table(results: Results, temperature: float, vocab: int = V_MAIN) -> str:
    body = []
    for case in RULES:
        r = results.one(rule=case.name, T=temperature, V=vocab)
        if r is None:
            continue
        body.append([
            f"`{case.name}`", number(r["kept"]["median"]), number(us(r, "engine")), number(us(r, "fd.sample")), number(r["ratio_to_read"]),
            number(r["slowest_row_ratio_to_read"]), number(us(r, "hf")), number(r["peers_over_engine"].get("hf")),
            number(r["peers_over_call"].get("hf")),
        ])  # fmt: skip
    head = ["rule", "kept", "engine", "`fd.sample`", "reads", "slowest", "step", "step / engine", "step / `fd.sample`"]
    return table(head, body)


def goals_table(results: Results) -> str:
    body = [[g.what, g.wanted, number(g.measured), g.reached, g.remark] for g in goals(results)]
    return table(["goal", "wanted", "measured", "reached", "remark"], body)


# ---- results/*.md --------------------------------------------------------------------------------------------------


def all_tables(results: Results) -> str:
    """What docs/results.md leaves out."""
    sections = [
        ("Peers, logits to token (V = 128256, float32, B = 1, one thread; µs per row)", peers_table(results, "token"))
    ]
    sections.append(("Masks only (the same; transformers: its warpers)", peers_table(results, "mask")))
    sections.append(("Vocabularies (µs per row, B = 1, one thread, float32)", vocabulary_table(results)))
    sections.append(("Batches and threads (µs per row)", batch_table(results)))
    sections.append(("bfloat16 (V = 128256, B = 1, µs per row)", bfloat16_table(results)))
    sections.append(("Synthetic rows (V = 128256, B = 1, T = 1, µs per row)", synthetic_table(results)))
    sections.append(("Where the Python overhead of `fd.sample` goes (µs)", overhead_table(results)))
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections)
    return f"# Results of {results.path.name}\n\nWritten by `make bench`; bench/README.md says what the columns mean.\n\n{text}\n"


def peers_table(results: Results, what: str) -> str:
    own = ["engine", "fd.sample"] if what == "token" else ["engine", "fd.truncate", "fd.truncate out="]
    names = [
        *own,
        "one read",
        "exp pass",
        "hf",
        "torch",
        *(["torch, cumsum", "numpy", "llama.cpp"] if what == "token" else []),
    ]
    body = []
    for temperature in (1.0, 1.5, 2.0):
        for case in RULES:
            r = results.one(rule=case.name, T=temperature, what=what)
            if r is not None:
                body.append([f"`{case.name}`, T={temperature:g}", *(number(us(r, name)) for name in names), *spread(r)])
    return table(["rule", *names, "engine p10 .. p90", "slowest row"], body)


def spread(record: dict) -> list[str]:
    return [f"{number(record['p10_us'])} .. {number(record['p90_us'])}", number(record["slowest_row_us"])]


def vocabulary_table(results: Results) -> str:
    body = []
    for temperature in (1.0, 2.0):
        for rule in MAIN:
            cells = []
            for vocab in VOCABULARIES:
                r = results.one(rule=rule, T=temperature, V=vocab)
                cells.append(
                    "-"
                    if r is None
                    else f"{number(us(r, 'engine'))} ({number(r['ratio_to_read'])} reads; hf {number(us(r, 'hf'))})"
                )
            body.append([f"`{rule}`, T={temperature:g}", *cells])
    return table(["rule", *map(str, VOCABULARIES)], body)


def batch_table(results: Results) -> str:
    body = []
    for r in results.records:
        if r["what"] in ("token", "mask") and r["B"] > 1 and r["rows"] == "real":
            two = r["peers_over_engine"].get("engine, 1 thread")
            call = "fd.sample" if r["what"] == "token" else "fd.truncate"
            body.append([
                f"`{r['rule']}`, {r['what']}, V={r['V']}, {r['dtype']}, T={r['T']:g}", str(r["B"]), str(r["threads"]), number(us(r, "engine")),
                number(us(r, call)), number(us(r, "one read")), number(r["ratio_to_read"]), number(us(r, "hf")), number(two),
            ])  # fmt: skip
    head = [
        "case",
        "B",
        "threads",
        "engine",
        "fd call",
        "one read (1 thread)",
        "reads",
        "hf",
        "one thread / two threads",
    ]
    return table(head, body)


def bfloat16_table(results: Results) -> str:
    body = []
    for r in results.all(dtype="bfloat16", B=1, what="token"):
        cells = [number(us(r, name)) for name in ("engine", "engine, float32", "fd.sample", "hf", "hf given float32")]
        body.append([f"`{r['rule']}`, T={r['T']:g}", *cells])
    return table(["rule", "engine", "engine, the same in float32", "fd.sample", "hf", "hf given float32"], body)


def synthetic_table(results: Results) -> str:
    body = []
    for rows in SYNTHETIC:
        for r in results.all(rows=rows, what="token"):
            cells = [
                number(r["kept"]["median"]),
                *(number(us(r, name)) for name in ("engine", "fd.sample", "one read", "hf")),
            ]
            body.append(
                [f"`{r['rule']}`, {rows}", *cells, number(r["ratio_to_read"]), number(r["slowest_row_ratio_to_read"])]
            )
    return table(["rule, rows", "kept", "engine", "fd.sample", "one read", "hf", "reads", "slowest"], body)


def overhead_table(results: Results) -> str:
    found = results.all(what="overhead")
    names = list(found[0]["parts_us"]) if found else []
    body = [
        [
            f"V={r['V']}",
            number(us(r, "fd.sample")),
            number(us(r, "engine")),
            number(r["overhead_us"]),
            *(number(r["parts_us"][n]) for n in names),
        ]
        for r in found
    ]
    return table(["row", "fd.sample", "engine", "overhead", *names], body)


# ---- files ---------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu.render", description=re.split(r"\n", __doc__)[0])
    parser.add_argument("results", nargs="?", type=Path, help="default: the newest in bench/results")
    parser.add_argument("--no-page", action="store_true", help="tables and plots beside the results only")
    given = parser.parse_args(arguments)
    from . import plots  # here, so that the tables need no matplotlib

    results = read(given.results.resolve() if given.results else newest())
    results.tables.write_text(all_tables(results), encoding="utf-8")
    plots.draw(results)
    if not given.no_page:
        plots.draw_speed(results, SPEED)
        others = [read(path) for path in sorted(RESULTS.glob("cpu-*.jsonl")) if path != results.path]
        page.write("\n\n".join([section(results), *map(other_section, others)]), MARKERS)
    print(f"rendered: {results.tables.name}, {', '.join(results.plot(name).name for name in PLOTS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
