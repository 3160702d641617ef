"""Measurements on a GPU. None of them has run on a GPU yet: every figure of a GPU in this project is a prediction until one has.

    make gpu-lease                everything, on a bare machine, in eight minutes (bench/gpu/lease)
    python -m bench.gpu           the benchmark alone: from logits to a token, against peers
    python -m bench.gpu.model     predicted times, without a GPU

| file | what it holds |
|---|---|
| grid.py | the cases, the most valuable first |
| candidates.py | what is measured: the two engines here, and the peers as their users call them |
| check.py | whether an answer is right; a wrong answer gets no timing |
| clock.py | microseconds of a call, with cold caches and with hot ones |
| measure.py | one candidate, in a process of its own |
| __main__.py | one such process after the other |
| roster.py | their names, and how their processes end |
| lines.py | results: a line for each, flushed at once |
| table.py | the same to read |
| stand_in.py | a GPU that is not there, for a dry run |
"""
