"""What the CUDA engine may cost, as tests/tools/test_gpu_model.py holds it. FIGURES IN THIS TABLE ONLY EVER GO DOWN: a change that
makes one lower lowers it here; a change that needs a higher one is not made.

Counted from machine code for sm_90 (nvcc 13.0), and by the emulation on real rows of 128256 float32 logits, eight blocks a row.
"""

from __future__ import annotations

INSTRUCTIONS = {"opening, a group of 256 tokens": 220, "another visit of a group": 222, "draw of one token": 1726}
FENCES = 19  # sites of a device-wide fence in sample_kernel; with truncate_kernel they are 35

# Of one row, the mean of two: barriers of a block, of the cluster.
BARRIERS = {
    "none": (9, 3), "min_p .05": (14, 4), "top_k 50": (38, 6), "top_p .95": (61.5, 10), "typical .9": (54.5, 10), "top_h .4": (38, 6),
}  # fmt: skip


def over(name: str, found: float, allowed: float) -> list[str]:
    """One sentence if a figure is above its budget."""
    if found <= allowed:
        return []
    return [f"{name}: the budget is {allowed}, got {found:g}; figures of bench/gpu/model/budget.py only ever go down."]
