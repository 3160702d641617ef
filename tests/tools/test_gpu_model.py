"""The model of the GPU's time: that it reads machine code as it is, and that the CUDA engine stays within its budget."""

from __future__ import annotations

import json

import pytest

import bench
from bench.gpu.model import __main__ as command
from bench.gpu.model import budget, calibrate, constants, cost, counts, paths, predict, sass
from bench.plans import RULES
from bench.rows import rows
from fastdecode import dispatch

RANKS, VOCAB = 8, 128256


# ---- the budget ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def costs() -> cost.Costs:
    fat = cost.built()
    if not fat:
        (pytest.fail if "cuda" in dispatch.required() else pytest.skip)("this build has no CUDA")
    try:
        sass.tool("nvdisasm")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return cost.costs(fat)


def test_the_machine_code_is_within_its_budget(costs):
    found = (costs.opening.instructions, costs.visit.instructions, costs.draw.instructions)
    faults = [
        fault
        for (name, allowed), n in zip(budget.INSTRUCTIONS.items(), found)
        for fault in budget.over(name, n, allowed)
    ]
    faults += budget.over("fences of device scope in sample_kernel", costs.fences, budget.FENCES)
    assert not faults, "\n".join(faults)
    # Nothing to count is no merit.
    assert costs.opening.instructions > 60 and costs.visit.cycles > costs.visit.instructions and costs.draw.cycles > 500


@pytest.mark.parametrize("rule", RULES[: len(budget.BARRIERS)], ids=lambda rule: rule.name)
def test_no_plan_waits_more_often_than_its_budget(rule):
    done = counts.of_rows(rows("real", VOCAB, 16)[::8].contiguous(), rule.rules, RANKS)
    block, cluster = budget.BARRIERS[rule.name]
    faults = budget.over(f"barriers of a block for {rule.name}", done.block_barriers, block)
    faults += budget.over(f"barriers of the cluster for {rule.name}", done.cluster_barriers, cluster)
    assert not faults, "\n".join(faults)
    groups = -(-VOCAB // 256)
    assert done.memory_loads == 2 * -(-groups // RANKS), "a block reads each of its groups once, 32 bytes a lane"
    assert done.cluster_barriers >= 2 and done.remotes > 0


def test_every_plan_of_the_table_has_a_budget():
    assert [*budget.BARRIERS] == [*command.PLANS]


def test_a_figure_above_its_budget_is_named():
    (fault,) = budget.over("fences", 20, 19)
    assert fault == "fences: the budget is 19, got 20; figures of bench/gpu/model/budget.py only ever go down."
    assert budget.over("fences", 19, 19) == []


# ---- machine code as data --------------------------------------------------------------------------------------------

# A loop in which a rare branch leads around the exponential, as nvdisasm prints it. The second half of an instruction says from bit
# 41 on: stall (4 bits), yield, scoreboard set, scoreboard of operands (3 each), scoreboards waited for (6).
ROWS = (
    (".L_x_0:", None),
    ("LDG.E R2, desc[UR4][R2.64]", (1, 0, 7, 0)),
    ("@P0 BRA `(.L_x_2)", (5, 7, 7, 0b1)),
    ("MUFU.EX2 R4, R2", (2, 1, 7, 0)),
    (".L_x_1:", None),
    ("FADD R5, R5, R4", (4, 7, 7, 0b10)),
    ("@P1 BRA `(.L_x_0)", (5, 7, 7, 0)),
    ("EXIT", (5, 7, 7, 0)),
    (".L_x_2:", None),
    ("FADD R5, R5, 1", (4, 7, 7, 0)),
    ("BRA `(.L_x_1)", (5, 7, 7, 0)),
)


def listing() -> str:
    lines, address = ["kernel:", ".text.kernel:", '\t//## File "/a/rows.cu", line 7 inlined at "/a/all.cu", line 9', '\t//## File "/a/all.cu", line 9'], 0  # fmt: skip
    for text, control in ROWS:
        if control is None:
            lines.append(text)
            continue
        stall, sets, frees, waits = control
        bits = (stall | sets << 5 | frees << 8 | waits << 11) << 41
        lines.append(f"        /*{address:04x}*/                   {text} ;   /* 0x{address:016x} */")
        lines.append(f"                                            /* 0x{bits:016x} */")
        address += 16
    return "\n".join(lines)


@pytest.fixture
def code() -> sass.Code:
    (found,) = sass.parsed(listing())
    return found


def test_a_listing_is_read_as_it_is(code):
    load, branch, exponential = code.instructions[:3]
    assert (code.name, len(code.instructions)) == ("kernel", 8)
    assert (load.opcode, load.stall, load.sets, load.frees, load.waits) == ("LDG.E", 1, 0, 7, 0)
    assert load.lines == (("/a/rows.cu", 7), ("/a/all.cu", 9)) == exponential.lines
    assert branch.target == ".L_x_2" and branch.is_predicated and branch.waits == 1
    # The way back from what was moved out of line looks like a loop too.
    assert code.loops == [(3, 7), (0, 4)] and code.loop_around(2) == (0, 4) and code.loop_around(6) == (3, 7)


def test_a_way_meets_what_it_is_drawn_to(code):
    drawn = [each.name for each in paths.way(code, 0, 4, paths.meets("MUFU"))]
    assert drawn == ["LDG", "BRA", "MUFU", "FADD", "BRA"]


def test_cycles_wait_for_what_an_instruction_waits_for(code):
    path = paths.way(code, 0, 4, paths.meets("MUFU"))
    # The branch waits for the load, the sum for the exponential: 700, then 5 and 24, then 4 and 5.
    assert paths.cycles(path, 700) == 700 + 5 + constants.LATENCY["MUFU"] + 4 + 5
    assert paths.cycles(path, 300) == paths.cycles(path, 700) - 400


def test_a_kernel_of_others_is_read_once_through(code):
    """Blocks of 32 warps, four floats a thread and step: 32 steps for 131072; five instructions of 32 warps on four schedulers take
    40 cycles, and waiting for the load more."""
    code.instructions[0].text = code.instructions[0].text.replace("LDG.E", "LDG.E.128")
    found = calibrate.once(constants.H100, code, calibrate.Published("", "", 64, 131072, 1.0))
    assert (found.vector, found.instructions) == (4, 5)
    assert (
        found.us
        == constants.GRAPH_KERNEL
        + 32 * paths.cycles(paths.way(code, 0, 4, paths.meets("LDG")), 700) / constants.H100.clock
    )


# ---- what is predicted -----------------------------------------------------------------------------------------------

WAY = cost.Way(200, 1000)
COSTS = cost.Costs(WAY, WAY, cost.Way(10, 100), cost.Way(1000, 5000), 19)
DONE = counts.Counts(900, 10, 3, 126, 2, 0, 1000)
SHAPE = counts.Shape(8, 256, True, 106_000)


def predicted(**changes: object) -> predict.Prediction:
    given = {
        "device": constants.H100,
        "costs": COSTS,
        "counts": DONE,
        "shape": SHAPE,
        "rows": 64,
        "vocab": VOCAB,
        "dtype": "float32",
    }
    return predict.predict(**{**given, **changes})


def test_rows_come_in_waves():
    """Two blocks of 106 kB fit a multiprocessor of 227 kB, and so 33 rows of 8 blocks into 132 of them."""
    assert [predicted(rows=n).waves for n in (1, 33, 34, 256)] == [1, 1, 2, 8]
    one, two = predicted(rows=33), predicted(rows=66)
    assert two.us - one.us == one.us - constants.GRAPH_KERNEL
    alone = predicted(shape=counts.Shape(8, 256, True, 130_000))
    assert alone.waves == 4 > predicted().waves


def test_no_prediction_is_below_the_read_of_the_rows():
    nothing = cost.Costs(*[cost.Way(0, 0)] * 4, 0)
    us = predicted(costs=nothing, rows=256, counts=counts.Counts(0, 0, 0, 0, 0, 0, 0)).us
    assert us >= 256 * VOCAB * 4 / constants.H100.read


def test_the_parts_are_the_row():
    parts = predicted().parts
    assert parts["opening"] * constants.H100.clock == 8 * 1000  # 63 groups of a block, 8 warps
    assert parts["cluster barriers"] == 3 * (constants.CLUSTER_BARRIER + constants.DEVICE_FENCE) / constants.H100.clock


def test_what_was_measured_stands_beside_it(tmp_path, monkeypatch):
    record = {
        "device": "NVIDIA H100",
        "who": "fastdecode, cuda",
        "rule": "none",
        "rows": "real",
        "dtype": "float32",
        "B": 1,
        "V": VOCAB,
        "T": 1.0,
    }
    lines = [{**record, "us": 9.5}, {**record, "who": "FlashInfer", "us": 3.0}, {"who": "fastdecode", "us": 1.0}]
    (tmp_path / "nvidia-h100.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    assert command.measured() == {("none", "real", "float32", 1, VOCAB, 1.0): 9.5}


def test_the_page_says_that_it_is_a_prediction():
    text = (bench.RESULTS / "gpu-model.md").read_text()
    assert "PREDICTED" in text.splitlines()[0] and "**predicted us**" in text and "none was measured" in text
