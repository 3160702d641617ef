"""What the CUDA engine may cost, as tests/tools/test_gpu_model.py holds it. FIGURES IN THIS TABLE ONLY EVER GO DOWN: a change that
makes one lower lowers it here; a change that needs a higher one is not made.

Counted from machine code for sm_90 (nvcc 13.0), and by the emulation on four real rows of 128256 float32 logits, eight blocks a row.
What the figures are to become is in goals.py.
"""

from __future__ import annotations

# In the order of test_the_machine_code_is_within_its_budget; a group has 256 tokens.
INSTRUCTIONS = {
    "opening with sums, a group": 222.5, "opening without, a group": 107.25, "another visit of a group": 254.25,
    "a group of masked logits": 114, "draw of one token": 1726,
}  # fmt: skip
# Sites in sample_kernel and truncate_kernel: of a fence of device scope; of a load or store of local memory.
FENCES, LOCAL = 35, 321

# Of one row, the mean of four: barriers of a block, of the cluster.
BARRIERS = {
    "none": (9, 3), "min_p .05": (14, 4), "top_k 50": (36.25, 6), "top_p .95": (52.25, 8), "typical .9": (49.5, 8.5), "top_h .4": (38.5, 6),
}  # fmt: skip


def over(name: str, found: float, allowed: float) -> list[str]:
    """One sentence if a figure is above its budget."""
    if found <= allowed:
        return []
    return [f"{name}: the budget is {allowed}, got {found:g}; figures of bench/gpu/model/budget.py only ever go down."]
