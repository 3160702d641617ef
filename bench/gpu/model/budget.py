"""What the CUDA engine may cost, as tests/tools/test_gpu_model.py holds it. FIGURES IN THIS TABLE ONLY EVER GO DOWN: a change that
makes one lower lowers it here; a change that needs a higher one is not made.

Counted from machine code for sm_90 (nvcc 13.0), and by the emulation on four real rows of 128256 float32 logits, eight blocks a row.
What the figures are to become is in goals.py.
"""

from __future__ import annotations

# In the order of test_the_machine_code_is_within_its_budget; a group has 256 tokens.
INSTRUCTIONS = {
    "opening with sums, a group": 160, "opening without, a group": 81.5, "another visit of a group": 231,
    "a group of masked logits": 114, "draw of one token": 960,
}  # fmt: skip
# Sites in sample_kernel and truncate_kernel: of a fence of device scope; of a load or store of local memory.
FENCES, LOCAL = 0, 230

# Of one row, the mean of four: barriers of a block, of the cluster.
BARRIERS = {
    "none": (6.5, 3), "min_p .05": (13.75, 3), "top_k 50": (26.25, 4.5), "top_p .95": (28.25, 4.5), "typical .9": (28.75, 4.5), "top_h .4": (25, 4),
}  # fmt: skip


def over(name: str, found: float, allowed: float) -> list[str]:
    """One sentence if a figure is above its budget."""
    if found <= allowed:
        return []
    return [f"{name}: the budget is {allowed}, got {found:g}; figures of bench/gpu/model/budget.py only ever go down."]
