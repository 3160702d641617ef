"""The doctor: the report that `python -m fastdecode` prints and `fastdecode.info()` returns.

It runs when something is broken, so every probe is guarded: a failure becomes a line of the report.
"""

from __future__ import annotations

import importlib.metadata
import math
import os.path
import platform
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .. import dispatch, philox

Report = dict[str, dict[str, str]]

OK = "ok"
PACKAGE = __package__.split(".")[0]


def info() -> Report:
    """Versions, how the extension was built, which engines can run and why the others cannot, and a self-test.

    Never raises and starts no GPU. Each section maps a name to one line of text; in "self-test" every line should be "ok".
    """
    return {title: dict(_guarded(section)) for title, section in _SECTIONS.items()}


def doctor() -> int:
    """Print the report; 1 if a self-test failed, else 0: the exit code."""
    report = info()
    width = max(len(name) for section in report.values() for name in section)
    for title, section in report.items():
        print(title)
        for name, line in section.items():
            print(f"  {name:<{width}}  {line}")
    failed = [name for name, line in report["self-test"].items() if line != OK]
    print(f"self-test failed: {', '.join(failed)}" if failed else "all self-tests passed")
    return 1 if failed else 0


def engine_in_use(device: str = "cpu") -> str:
    """The name of the engine that a call on this device would use now."""
    chosen = dispatch.engine_for(torch.device(device))
    return next(name for name, engine in dispatch.ENGINES.items() if engine is chosen)


# ---- sections: each yields names with a probe, which answers with one line -------------------------------------------


Probes = Iterator[tuple[str, Callable[[], str]]]


def _versions() -> Probes:
    yield (
        "fastdecode",
        lambda: f"{sys.modules[PACKAGE].__version__} in {os.path.dirname(sys.modules[PACKAGE].__file__ or PACKAGE)}",
    )
    yield "python", platform.python_version
    for name in ("torch", "numpy", "transformers", "triton"):
        yield name, lambda name=name: _version(name)  # type: ignore[misc]


def _machine() -> Probes:
    yield "system", lambda: f"{platform.system()} {platform.machine()}"
    yield "cores", lambda: str(os.cpu_count())
    yield "torch threads", lambda: str(torch.get_num_threads())


def _build() -> Probes:
    native = dispatch.ENGINES.get("cpu")
    if native is None:
        yield "extension", lambda: "not there"
        return
    cuda = getattr(native._native, "cuda_built_for", None)  # type: ignore[attr-defined]
    yield "cuda engine", lambda: f"built for {cuda()}" if cuda else "not built: no nvcc, or FASTDECODE_CUDA=0"
    if cuda:
        yield "cuda devices", lambda: "; ".join(_cuda_devices(native._native))  # type: ignore[attr-defined]
    labels = {"compiler": "compiler", "targets": "instruction sets", "target": "in use"}
    for key, label in labels.items():
        yield label, lambda key=key: native.build_info()[key]  # type: ignore[attr-defined, misc]


def _cuda_devices(compiled: Any) -> list[str]:
    try:
        return compiled.cuda_devices()
    except RuntimeError as error:  # usual without a driver, and not a failure
        return [f"none: {error}"]


def _engines() -> Probes:
    for name in dispatch.ENGINES:
        devices = [device for device, names in dispatch.PREFERENCE.items() if name in names]
        where = "any device" if name == "reference" else ", ".join(devices)
        yield name, lambda where=where: f"can run on {where}"  # type: ignore[misc]
    for name, why in dispatch.MISSING.items():
        yield name, lambda why=why: f"cannot run: {why}"  # type: ignore[misc]
    yield "chosen for cpu", engine_in_use


def _selftest() -> Probes:
    yield "philox vectors", _philox_vectors
    yield "reference", _reference_keeps
    for name in dispatch.ENGINES:
        if name != "reference":
            yield name, lambda name=name: _agrees_with_reference(name)  # type: ignore[misc]
    yield "an ordinary call", _ordinary_call


_SECTIONS: dict[str, Callable[[], Probes]] = {
    "versions": _versions,
    "machine": _machine,
    "build": _build,
    "engines": _engines,
    "self-test": _selftest,
}


def _guarded(section: Callable[[], Probes]) -> Iterator[tuple[str, str]]:
    try:
        for name, probe in section():
            try:
                yield name, str(probe())
            except Exception as error:
                yield name, f"FAILED: {type(error).__name__}: {error}"
    except Exception as error:  # the section itself, not one of its probes
        yield "probe", f"FAILED: {type(error).__name__}: {error}"


def _version(name: str) -> str:
    """From the package's metadata: an import of transformers takes seconds, and may be the broken part."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# ---- self-test -----------------------------------------------------------------------------------------------------

# Philox4x32-10 as published with Random123 (tests/vectors holds the file): counter, key, answer.
_PUBLISHED = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


def _philox_vectors() -> str:
    for counter, key, expected in _PUBLISHED:
        words = philox.philox4x32_10(_words(counter), _words(key))
        got = " ".join(f"{int(word):08x}" for word in words)
        if got != expected:
            return f"FAILED: counter {counter}, key {key}: expected {expected}; got {got}"
    return OK


def _words(text: str) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(int(word, 16), device="cpu") for word in text.split())


def _reference_keeps() -> str:
    """Of probabilities 1/2, 1/4, 1/8, 1/16, 1/16 a rule keeps what can be worked out by hand."""
    from .. import min_p, plan, top_k, top_p, truncate

    row = torch.tensor([[1 / 16, 1 / 2, 1 / 8, 1 / 16, 1 / 4]], dtype=torch.float32, device="cpu").log()
    with dispatch.use("reference"):
        for rules, expected in ((top_p(0.7), [1, 4]), (min_p(0.25), [1, 2, 4]), (top_k(4), [0, 1, 2, 3, 4])):
            kept = (truncate(row, plan(rules))[0] > -math.inf).nonzero().flatten().tolist()
            if kept != expected:
                return f"FAILED: {rules!r} of {row.exp().tolist()[0]} should keep {expected}; kept {kept}"
    return OK


def _agrees_with_reference(name: str) -> str:
    """One chain with every kind of cut on a fixed bumpy row: the same mask and the same tokens as the reference."""
    from .. import plan, sample, temperature, top_h, top_k, top_n_sigma, truncate, typical_p

    device = next((device for device, names in dispatch.PREFERENCE.items() if name in names), "cpu")
    ids = torch.arange(3001, dtype=torch.float64, device="cpu")
    row = (5 * torch.sin(ids * ids) + 3 * torch.sin(ids / 100)).float()[None].to(device)
    chain = plan(temperature(1.3), top_k(2000), typical_p(0.95), top_n_sigma(1.5), top_h(0.9))
    found = []
    for engine in ("reference", name):
        with dispatch.use(engine):
            mask = truncate(row, chain).cpu() > -math.inf
            found.append((mask, sample(row, chain, seed=1, num_samples=16).tokens.cpu()))
    (mask, tokens), (its_mask, its_tokens) = found
    if not torch.equal(mask, its_mask):
        return f"FAILED: {chain!r} keeps {int(its_mask.sum())} tokens instead of {int(mask.sum())}"
    if not torch.equal(tokens, its_tokens):
        return f"FAILED: {chain!r} draws {its_tokens.tolist()[0]} instead of {tokens.tolist()[0]}"
    return OK


def _ordinary_call() -> str:
    """A user's first call; fails if the environment asks for an engine that cannot run."""
    from .. import min_p, plan, sample

    token = int(
        sample(torch.tensor([0.0, 9.0, 0.0], dtype=torch.float32, device="cpu"), plan(min_p(0.5)), seed=0).tokens
    )
    return OK if token == 1 else f"FAILED: expected token 1; got {token}"
