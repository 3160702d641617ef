"""A plan: rules in the order they run, checked once and packed into the small tensor that the engines read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .rules import COLDEST, DRAW, FIELDS, HOTTEST, Cut, Parameter, Rule, temperature


class Plan:
    """An immutable chain of rules, run left to right, each on the renormalised survivors of those before it.

    A temperature divides the logits for every rule after it and for the draw; several temperatures multiply. Per-row
    tensors are copied when the plan is made. A plan with no rule is the plain softmax. Make one with `fastdecode.plan`.
    """

    __slots__ = ("rules", "cuts", "rows", "_packed", "_packed_at")

    def __init__(self, rules: Iterable[Rule]):
        self.rules: tuple[Rule, ...] = tuple(rules)
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise TypeError(f"plan() takes rules such as fastdecode.min_p(0.05); got {rule!r}.")
        self.cuts: tuple[Cut, ...] = _with_temperatures(self.rules)
        self.rows: int | None = _common_rows(self.rules, self.cuts)
        self._packed: dict[torch.device, torch.Tensor] = {}
        self._packed_at: tuple[Any, ...] | None = None

    def __repr__(self) -> str:
        return f"plan({', '.join(map(repr, self.rules))})"

    def __add__(self, other: Plan) -> Plan:
        """The rules of this plan, then those of the other."""
        return Plan(self.rules + other.rules)

    def packed(self, device: torch.device) -> torch.Tensor:
        """The cuts as a float32 tensor [B or 1, number of cuts, number of fields]; the last one is the draw."""
        found = self._packed.get(device)
        if found is None:
            found = self._packed[device] = _pack(self.cuts, 1 if self.rows is None else self.rows).to(device)
        return found

    def at(self, t: Parameter) -> Plan:
        """This plan after one more temperature, which comes first."""
        return Plan((temperature(t), *self.rules))

    def packed_at(self, temperatures: tuple[float, ...] | torch.Tensor, device: torch.device) -> torch.Tensor:
        """The cuts of `at(t)` for each temperature, float32 [B or 1, T, number of cuts, number of fields]; with per-row
        temperatures, [B, T], B of them. Those of numbers are remembered until others are asked for."""
        key = (temperatures, device) if isinstance(temperatures, tuple) else None
        if key is not None and self._packed_at is not None and self._packed_at[0] == key:
            return self._packed_at[1]
        columns = temperatures.unbind(1) if isinstance(temperatures, torch.Tensor) else temperatures
        packed = torch.stack([self.at(t).packed(device) for t in columns], dim=1)
        if key is not None:
            self._packed_at = (key, packed)
        return packed


def plan(*rules: Rule | Iterable[Rule]) -> Plan:
    """Make a plan from rules: `plan(temperature(1.5), top_h(0.4))`, or from one list of them.

    Raises:
        TypeError: an argument is not a rule.
        ValueError: two parameters hold different numbers of rows.
    """
    chain: Iterable[Any] = rules  # of rules; Plan says so if it is not
    if len(rules) == 1 and not isinstance(rules[0], Rule) and isinstance(rules[0], Iterable):
        chain = rules[0]
    return Plan(chain)


def _with_temperatures(rules: tuple[Rule, ...]) -> tuple[Cut, ...]:
    """The cuts that do something, each with the temperature it runs at, and the draw."""
    product: Parameter = 1.0
    cuts = []
    for rule in rules:
        if rule.temperature is not None:
            product = _times(product, rule.temperature)
        at = _within_reach(product)
        cuts += [Cut(**{**vars(cut), "temperature": at}) for cut in rule.cuts if not cut.is_off()]
    return (*cuts, Cut(DRAW, temperature=_within_reach(product)))


def _times(product: Parameter, t: Parameter) -> Parameter:
    """In double, where 1e-30 * 1e-30 * 1e30 is not 0; greedy rows stay greedy."""
    if isinstance(t, torch.Tensor):
        return torch.where(t == 0, 0.0, product * t.double())
    return product * t if t else product * 0.0


def _within_reach(t: Parameter) -> Parameter:
    """A temperature that every engine can divide by. This is the one place that sees to it, also for tensors on a GPU, whose values
    nobody has checked: what is not a number >= 0 makes its row greedy."""
    if isinstance(t, torch.Tensor):
        return torch.where(t >= COLDEST, t.clamp(max=HOTTEST), 0.0).float()
    return min(t, HOTTEST) if t >= COLDEST else 0.0


def _common_rows(rules: tuple[Rule, ...], cuts: tuple[Cut, ...]) -> int | None:
    """How many rows the per-row parameters hold, or None if every parameter is one number."""
    lengths = {len(value) for cut in cuts for value in vars(cut).values() if isinstance(value, torch.Tensor)}
    if len(lengths) > 1:
        shown = ", ".join(map(repr, rules))
        raise ValueError(
            f"all per-row parameters of a plan must have one value per row; got lengths {sorted(lengths)} in {shown}."
        )
    return lengths.pop() if lengths else None


def _pack(cuts: tuple[Cut, ...], rows: int) -> torch.Tensor:
    """On the device of the per-row tensors, if there are any: reading them back would wait for a GPU."""
    columns = [[getattr(cut, name) for name in FIELDS] for cut in cuts]
    numbers = [[0.0 if isinstance(value, torch.Tensor) else float(value) for value in cut] for cut in columns]
    packed = torch.tensor(numbers, dtype=torch.float32, device="cpu").repeat(rows, 1, 1)
    tensors = [(i, j, v) for i, cut in enumerate(columns) for j, v in enumerate(cut) if isinstance(v, torch.Tensor)]
    if tensors:
        packed = packed.to(tensors[0][2].device)
    for i, j, values in tensors:
        packed[:, i, j] = values
    return packed
