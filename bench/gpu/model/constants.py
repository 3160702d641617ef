"""What is known of the devices, each number with its source: the only place of the model that holds one.

Sources were quoted from memory where no page is named; what says "estimate" has none. The first measurement on a GPU replaces them:
clocks, bandwidth, launch and one cluster barrier are the facts that such a run begins with.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    name: str
    multiprocessors: int
    shared_bytes: int  # of a multiprocessor that a block may have
    max_ranks: int  # blocks of a portable cluster
    schedulers: int  # of a multiprocessor: each issues one instruction a cycle
    clock: float  # cycles a microsecond
    read: float  # bytes a microsecond from memory


# NVIDIA's data sheet of the H100 SXM: 132 multiprocessors, 3.35 TB/s. Estimates: 90 % of that is reached; 1755 MHz are kept under
# load (the boost clock of the PCIe card: Chips and Cheese, "Nvidia's H100: Funny L2, and Tons of Bandwidth", 2023).
# CUDA C++ Programming Guide, compute capability 9.0: 227 KB of shared memory a block, clusters of 8, 4 schedulers.
H100 = Device("H100 SXM", 132, 227 << 10, 8, 4, 1755.0, 3.0e6)

# ---- cycles on Hopper ------------------------------------------------------------------------------------------------

# Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture" (arXiv 2402.13499): a read from memory 478 at no load.
# Estimate: 700 under the load of a pass, where reads wait for each other.
MEMORY_IDLE, MEMORY = 478, 700
# The same: 180 to another block's shared memory in the cluster, and so about the same for a barrier of the cluster.
CLUSTER_BARRIER = 190
# Estimate: bytes a cycle that one multiprocessor takes from L2 or memory while few of them ask; the port of L2 is 64 wide.
COPY = 40
# Estimate: a fence of device scope waits for all stores of the block to reach L2, and then L1 is empty.
DEVICE_FENCE = 600

# By instruction, until its result can be used. LDS, SHFL, MUFU and double precision: the same paper, and Jia et al., "Dissecting the
# NVIDIA Volta GPU Architecture via Microbenchmarking" (arXiv 1804.06826); the others are estimates, +-30 %.
LATENCY = {
    "LDS": 29, "LDC": 29, "LDL": 33, "SHFL": 24, "MUFU": 24, "REDUX": 34, "S2R": 30, "S2UR": 30, "R2UR": 12, "F2F": 22, "F2I": 22,
    "I2F": 22, "STS": 20, "STL": 20, "ST": 20, "STG": 20, "BAR": 30, "ATOMS": 60, "VOTE": 12, "VOTEU": 12, "POPC": 14, "FLO": 14,
    "DADD": 16, "DFMA": 16, "DMUL": 16, "DSETP": 16, "I2FP": 6, "F2FP": 6,
}  # fmt: skip
OTHER_LATENCY = 10
TAKEN_BRANCH = 8  # estimate

# ---- microseconds ----------------------------------------------------------------------------------------------------

GRAPH_KERNEL = 1.3  # estimate: a kernel of a replayed graph, from the end of the one before
