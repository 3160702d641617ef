"""The compiled module takes raw addresses and checks nothing: see csrc/bindings.cpp. Only engines/cpu.py and engines/cuda.py call it."""

_Rows = tuple[int, ...]  # the groups of numbers are named in engines/addresses.py
_Coordinate = tuple[int, int, int]
_Streams = tuple[int, int]
_Output = tuple[int, int, float]
_Where = tuple[int, int, int]  # device, stream, blocks for each row

def fields() -> list[str]: ...
def arguments() -> dict[str, list[str]]: ...

# ---- the CPU engine

def truncate_cpu(rows: _Rows, output: _Output, threads: int, /) -> None: ...
def sample_cpu(
    rows: _Rows,
    seed: _Coordinate,
    step: _Coordinate,
    streams: _Streams,
    drawn: tuple[int, ...],
    statistics: tuple[int, ...],
    threads: int,
    /,
) -> None: ...
def soften_cpu(
    rows: _Rows,
    seed: _Coordinate,
    step: _Coordinate,
    streams: _Streams,
    noise: tuple[float, ...],
    sampled: tuple[int, ...],
    mixture: tuple[int, ...],
    threads: int,
    /,
) -> None: ...
def embed_cpu(table: tuple[int, ...], mixture: tuple[int, ...], threads: int, /) -> None: ...
def uniforms(
    use: int,
    rows: int,
    n: int,
    ids: int,
    seeds: int,
    seed_stride: int,
    steps: int,
    step_stride: int,
    streams: int,
    stream_stride: int,
    out: int,
) -> None: ...
def philox4x32_10(counter: list[int], key: list[int]) -> list[int]: ...
def exponential(seed: int, step: int, stream: int, index: int) -> float: ...
def ln_gamma_quantile(shape: float, u: float) -> float: ...
def read_once(x: int, n: int) -> float: ...
def exp_pass(x: int, n: int) -> float: ...
def targets() -> list[str]: ...
def target() -> str: ...
def use_target(name: str) -> bool: ...
def compiler() -> str: ...

# ---- the CUDA engine, in builds that have it

most_candidates: int

def truncate_cuda(rows: _Rows, output: _Output, where: _Where, /) -> None: ...
def sample_cuda(
    rows: _Rows,
    seed: _Coordinate,
    step: _Coordinate,
    streams: _Streams,
    drawn: tuple[int, ...],
    statistics: tuple[int, ...],
    where: _Where,
    /,
) -> None: ...
def soften_cuda(
    rows: _Rows,
    seed: _Coordinate,
    step: _Coordinate,
    streams: _Streams,
    noise: tuple[float, ...],
    sampled: tuple[int, ...],
    mixture: tuple[int, ...],
    where: _Where,
    /,
) -> None: ...
def embed_cuda(table: tuple[int, ...], mixture: tuple[int, ...], where: _Where, /) -> None: ...
def cuda_shape(
    multiprocessors: int, shared_bytes: int, most_ranks: int, dtype: int, rows: int, vocab: int
) -> tuple[int, int, bool, int]: ...
def cuda_built_for() -> str: ...
def cuda_devices() -> list[str]: ...
