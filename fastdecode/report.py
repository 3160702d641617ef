"""What `python -m fastdecode` prints and `fastdecode.info()` returns."""

from __future__ import annotations

import platform


def info() -> dict[str, object]:
    """Versions, how the extension was built, which engines can run and why the others cannot. Never raises, starts no GPU."""
    import torch

    from . import __version__, dispatch

    return {
        "fastdecode": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "engines": sorted(dispatch.ENGINES),
        "missing": dict(dispatch.MISSING),
    }
