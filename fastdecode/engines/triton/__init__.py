"""The Triton engine. launch.py has the functions of `dispatch.Engine`."""

import triton

# Older ones compile no named tuples: see measure.py.
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
    raise ImportError(f"3.3 or newer is needed; got {triton.__version__}")
