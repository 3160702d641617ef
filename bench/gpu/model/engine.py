"""What the model takes for granted of csrc/cuda: which function does what, and what tells one way through it from another. Nothing else
of the model names anything of the engine. When the kernels are restructured, this is the file to edit; a name that is not found
makes the model stop with a sentence that says so.

A function stays visible to the model as long as it is FD_CALLED. A template counts by its name: all of its instances are looked at,
and the one that suits the case (type, with or without sums) is found by its instructions. What is inlined into a kernel is looked
for under the kernel's name.
"""

from __future__ import annotations

ARCHITECTURE = "sm_90"
ROW_KERNELS = ("sample_kernel", "truncate_kernel")

# The functions of each part; `GROUPS_A_STEP`: groups of 256 tokens that a warp takes in one step of the opening loop, kAhead in
# slice.cuh; with each of the visits, those of its loop.
OPENING = ("open_slice",)
GROUPS_A_STEP = 4
VISITS = {"pass_of_sums": 4, "split": 4, "guess": 4}  # they look at groups that are held already
DRAW = ("winning_groups", "leave_tokens")
WRITING = ("write_row",)

# Plans that ask for sums while the row comes in: first_scale in narrow.cuh. The others have none then, and sum their survivors later.
OPENS_WITH_SUMS = frozenset({"none", "top_p .95", "typical .9", "top_h .4"})

# Waits for the cluster that end no pass over the groups: at the start, after the opening pass, at the end. Every other one does.
FIXED_WAITS = 2

# Another way to wait, such as for a mailbox, must count in the emulation as kClusterBarriers, or the model sees none of it.

# Row data moves 16 bytes a lane. In the opening loop it comes by these instructions; in the others, from shared memory.
OPENING_LOADS = ("LDS",)
# The row comes by copies that no register waits for, and the opening loop reads it where it is held from then on.
OPENS_IN_SHARED = True
# A block has whole chunks of groups: kChunkGroups in slice.cuh.
CHUNK = 8
# A lane takes a group in two quads of tokens, whatever their type.
LOADS_A_GROUP = 2
HELD_LOADS = ("LDS",)
STORES = ("ST", "STS", "STG")
# A lane's second 16 bytes, which 16-bit rows do not have: their address in global memory, in shared memory.
SECOND_CHUNK = ("+0x200]",)
# The loads beside a lane's own, of which a row that does not start on 16 bytes is shifted together.
SHIFTED = ("+0x10]", "+0x210]", "+0x8]", "+0x108]")
# A batch that a copy cannot bring is loaded by these.
NOT_COPIED = ("LD", "LDG")
# What turns 16-bit numbers into floats.
UNPACKS = {"float32": (), "bfloat16": ("0xffff0000",), "float16": ("HADD2.F32",)}

# A fence of device scope is all of these.
FENCE = ("MEMBAR.ALL.GPU", "MEMBAR.SC.GPU")
# A wait for the cluster: at its barrier, or at a barrier in shared memory (a mailbox).
CLUSTER_WAITS = ("UCGABAR_WAIT", "SYNCS.PHASECHK")
BESIDE_A_FENCE = ("ERRBAR", "CGAERRBAR", "CCTL.IVALL")
