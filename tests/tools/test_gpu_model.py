"""The model of the GPU's time: that it reads machine code as it is, and that the CUDA engine stays within its budget."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bench
from bench.gpu.model import __main__ as command
from bench.gpu.model import (
    budget,
    calibrate,
    calls,
    constants,
    cost,
    counts,
    engine,
    goals,
    host,
    paths,
    predict,
    rounds,
    sass,
)
from bench.gpu.model.calls import VOCAB, Call
from fastdecode import dispatch
from tests.support.tolerance import SHARE

# ---- the budget ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fat() -> Path:
    found = cost.built()
    if not found:
        (pytest.fail if "cuda" in dispatch.required() else pytest.skip)("this build has no CUDA")
    try:
        sass.tool("nvdisasm")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return found


def test_the_machine_code_is_within_its_budget(fat):
    costs, sites = cost.costs(fat), cost.sites(fat)
    found = (costs.opening, costs.bare_opening, costs.visit, costs.writing, costs.draw)
    faults = [
        fault
        for (name, allowed), each in zip(budget.INSTRUCTIONS.items(), found, strict=True)
        for fault in budget.over(name, each.instructions, allowed)
    ]
    faults += budget.over("fences of device scope in the row kernels", sites.fences, budget.FENCES)
    faults += budget.over("loads and stores of local memory in the row kernels", sites.local, budget.LOCAL)
    assert not faults, "\n".join(faults)
    # Nothing to count is no merit.
    assert costs.bare_opening.instructions > 30 and costs.visit.cycles > costs.visit.instructions
    assert costs.opening.instructions > costs.bare_opening.instructions + 32 and costs.draw.cycles > 500


@pytest.mark.parametrize("name", command.PLANS)
def test_no_plan_waits_more_often_than_its_budget(name):
    call = Call(name)
    done = calls.counted(call)
    block, cluster = budget.BARRIERS[name]
    faults = budget.over(f"barriers of a block for {name}", done.block_barriers, block)
    faults += budget.over(f"barriers of the cluster for {name}", done.cluster_barriers, cluster)
    assert not faults, "\n".join(faults)
    groups = -(-VOCAB // counts.GROUP)
    assert done.memory_loads == 0, "a block's groups come by copies"
    assert done.shared_loads >= 2 * -(-groups // call.shape.ranks), "and are read there, 32 bytes a lane"
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


# ---- the ways of rows of each type -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_way_loads_what_a_row_of_its_type_has(fat, dtype):
    """Of four groups: two loads a lane, and what unpacks the type and no other."""
    codes = cost.kernel(fat, "sample_kernel")["open_slice"]
    path = cost._best_loop(codes, cost.row_way(dtype, 1, True), 0.96).path
    width = ".128" if dtype == "float32" else ".64"
    loads = [each for each in path if each.name in engine.OPENING_LOADS and width in each.opcode]
    assert len(loads) >= 2 * engine.GROUPS_A_STEP
    marks = {name: sum(mark in each.text for each in path for mark in marks) for name, marks in engine.UNPACKS.items()}
    assert {name for name, n in marks.items() if n} == ({dtype} - {"float32"}) and sum(marks.values()) in (0, 16, 32)
    assert sum(each.name == "MUFU" for each in path) == 8 * engine.GROUPS_A_STEP
    assert not any(each.name == "CALL" for each in path)
    bare = cost._best_loop(codes, cost.row_way(dtype, -1, True), 0.96).path
    assert not any(each.name == "MUFU" for each in bare) and sum(each.name == "REDUX" for each in bare) == 4


def test_an_odd_row_is_shifted_into_place(fat):
    even, odd = cost.costs(fat), cost.costs(fat, aligned=False)
    assert even.opening.instructions < odd.opening.instructions < 2 * even.opening.instructions
    assert even.opening.cycles < odd.opening.cycles < 2 * even.opening.cycles, "its loads do not wait for each other"
    assert odd.visit == even.visit and odd.draw == even.draw


def test_waits_without_a_fence_are_told_from_those_with_one(fat):
    sites = cost.sites(fat)
    assert sites.cluster_waits > 0 and sites.fence_instructions >= sites.fences
    assert replace(sites, fences=3, cluster_waits=12).fenced == 0.25 and replace(sites, fences=0).fenced == 0


def test_every_instance_of_a_template_is_looked_at():
    assert cost._plain("9open_onceERNS1_4TeamEf") == cost._plain("9open_onceILb1EEEvRNS1_4TeamE") == "open_once"


def test_a_function_that_is_gone_is_named(fat, monkeypatch, capsys):
    monkeypatch.setattr(engine, "OPENING", ("first_pass",))
    monkeypatch.setattr(command.sys, "argv", ["bench.gpu.model", "--budget"])
    cost.costs.cache_clear()
    assert command.main() == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "One of the functions first_pass must be in the machine code, and none is; see bench/gpu/model/engine.py."
    )


# ---- the budget of the redesign ----------------------------------------------------------------------------------------


def test_the_budget_has_a_line_for_each_figure(fat):
    lines = [*goals.lines(fat)]
    assert len(lines) == 16 and all(len(line.today) == len(line.budget) > 0 for line in lines)
    assert all(x > 0 for line in lines for x in line.today if not line.what.startswith(("fences", "loads")))
    shown = goals.table(lines)
    assert len(shown) == 2 + len(lines) and all(row.count("|") == 5 for row in shown)


def test_a_line_is_met_when_all_of_it_is():
    assert goals.Line("", (1, 2), (1, 2)).is_met and not goals.Line("", (1, 2.1), (1, 2)).is_met


def test_the_host_is_timed_without_a_launch():
    assert 1 < host.time_of_a_call() < 5000


# ---- kernels of others -------------------------------------------------------------------------------------------------


def test_a_kernel_of_others_is_read_by_its_unrolled_loops(code):
    """Blocks of 32 warps, eight floats a thread and step; five instructions of 32 warps on four schedulers take 40 cycles, and
    waiting for the load more."""
    code.instructions[0] = replace(code.instructions[0], text="LDG.E.128 R2, desc[UR4][R2.64]")
    with pytest.raises(ValueError, match="must have an unrolled loop of 16-byte loads"):
        calibrate.kernel(code)  # one load a step: what an unrolled loop leaves over
    code.instructions[2] = replace(code.instructions[2], text="LDG.E.128 R4, desc[UR4][R2.64]")
    found = calibrate.kernel(code)
    (one,) = found.passes
    assert (one.vector, one.instructions, found.registers) == (8, 5, 6)
    alone = paths.cycles(paths.way(code, 0, 4, paths.meets("LDG")), 700)
    assert one.us(constants.H100, 8192, 1) == alone / constants.H100.clock
    assert one.us(constants.H100, 4 * 8192, 1000) == 4 * 1000 * 5 * 8 / constants.H100.clock, (
        "the schedulers are shared"
    )


def test_a_barrier_keeps_all_warps_until_the_last():
    step = calibrate.Pass(4, ((10, 500), (100, 20)))
    assert step.us(constants.H100, 4096, 1) == (500 + 100 * 8) / constants.H100.clock


def test_blocks_of_others_come_in_waves():
    one = calibrate.Kernel(
        (calibrate.Pass(4, ((10, 1755),)),), registers=40
    )  # a microsecond a step, one block a multiprocessor
    run = [one.run(constants.H100, [[4096]] * n, 0) - constants.GRAPH_KERNEL for n in (1, 132, 264)]
    assert all(abs(found - wanted) < SHARE for found, wanted in zip(run, (1, 1, 2)))
    assert one.run(constants.H100, [[4096]], 30e6) == constants.GRAPH_KERNEL + 10, "no less than the bytes take"
    slow = one.run(constants.H100, [[4096], [5 * 4096]], 0) - constants.GRAPH_KERNEL
    assert abs(slow - 5) < SHARE, "the slowest row counts"


def test_a_sampler_by_rejection_goes_on_until_little_lies_above_its_token():
    peaked = torch.full((1000,), 0.01 / 999)
    peaked[17] = 0.99
    assert rounds.tokens(peaked, "top_p", 0.5, 3) == [18, 1000]
    assert rounds.tokens(peaked, "top_k", 1, 3) == [18, 1000]
    assert rounds.tokens(peaked, "min_p", 0.5, 3) == [1000, 1000, 18]
    assert rounds.tokens(peaked, "none", 0, 3) == [18]
    # Of equal tokens, every one has nothing above it: one round each, though ten are wanted of a thousand.
    flat = torch.full((1000,), 0.001)
    assert rounds.tokens(flat, "top_k", 10, 3)[1] == 1000
    # Different ones: the range halves a few times. Every token that is taken is among the ten largest.
    ramp = torch.arange(1.0, 1001) / 500500
    seen = [rounds.tokens(ramp, "top_k", 10, seed)[1] / 1000 for seed in range(20)]
    assert 2 < sum(seen) / 20 < 12


# ---- what is predicted -----------------------------------------------------------------------------------------------

WAY = cost.Way(200, 1000)
COSTS = cost.Costs(WAY, WAY / 2, WAY, cost.Way(60, 400), cost.Way(10, 100), cost.Way(1000, 5000), cost.Way(100, 400))
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
    nothing = cost.Costs(*[cost.Way(0, 0)] * 7)
    us = predicted(costs=nothing, rows=256, counts=counts.Counts(0, 0, 0, 0, 0, 0, 0)).us
    assert us >= 256 * VOCAB * 4 / constants.H100.read


def test_the_parts_are_the_row():
    parts = predicted().parts
    assert parts["opening"] * constants.H100.clock == 8 * 1000  # 63 groups of a block, 8 warps
    assert parts["cluster barriers"] == 3 * (constants.CLUSTER_BARRIER + constants.DEVICE_FENCE) / constants.H100.clock
    assert predicted(fenced=0).parts["cluster barriers"] == 3 * constants.CLUSTER_BARRIER / constants.H100.clock
    assert predicted(sums=False).parts["opening"] == parts["opening"] / 2
    assert parts["writing"] == 0
    assert predicted(counts=counts.Counts(900, 10, engine.FIXED_WAITS, 126, 2, 0, 1000)).parts["skipped groups"] == 0


def test_a_pass_that_leaves_groups_out_takes_time_too():
    """A wait more than the fixed ones ends a pass over 64 groups, of which one is looked at; all were read where they are held."""
    parts = predicted(counts=counts.Counts(900, 10, engine.FIXED_WAITS + 1, 0, 130, 0, 1000)).parts
    assert abs(parts["skipped groups"] * constants.H100.clock - 63 / 8 * 400) < SHARE * 3150


def test_masked_logits_are_written_and_nothing_is_drawn():
    one = predicted(writes=True, counts=counts.Counts(900, 10, 3, 0, 128 + 130, 0, 1000)).parts
    assert one["draw"] == 0 and one["writing"] * constants.H100.clock == 8 * 400
    assert abs(one["visits"] * constants.H100.clock - 1 / 8 * 1000) < SHARE * 125, (
        "of 64, those that are written are no visits"
    )
    nothing = cost.Costs(*[cost.Way(0, 0)] * 7)
    us = predicted(costs=nothing, rows=256, writes=True).us
    assert us >= 2 * 256 * VOCAB * 4 / constants.H100.read


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
