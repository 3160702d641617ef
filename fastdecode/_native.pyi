"""The compiled module takes raw addresses; see csrc/bindings.cpp. Only native.py calls it."""

from typing import Any

def __getattr__(name: str) -> Any: ...
