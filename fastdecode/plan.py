"""A plan: rules in the order they run, checked once and packed into the small tensor that the engines read."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch

from .arguments import described
from .rules import COLDEST, DRAW, FIELDS, HOTTEST, Cut, Parameter, Rule, temperature


class Plan:
    """An immutable chain of rules, run left to right, each on the renormalised survivors of those before it.

    A temperature divides the logits for every rule after it and for the draw; several temperatures multiply. Per-row
    tensors are copied when the plan is made. A plan with no rule is the plain softmax. Make one with `fastdecode.plan`.

    `plan + rule` and `plan + plan` are longer plans. Two plans are equal if their rules are, with values for each row compared
    one by one (on a GPU, that reads them back).
    """

    __slots__ = ("rules", "cuts", "rows", "_packed", "_packed_at")

    def __init__(self, rules: Iterable[Rule]):
        self.rules: tuple[Rule, ...] = tuple(rules)
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise TypeError(f"plan() takes rules such as fastdecode.min_p(0.05); got {_not_a_rule(rule)}.")
        self.cuts: tuple[Cut, ...] = _with_temperatures(self.rules)
        self.rows: int | None = _common_rows(self.rules, self.cuts)
        self._packed: dict[torch.device, torch.Tensor] = {}
        self._packed_at: tuple[Any, ...] | None = None

    def __repr__(self) -> str:
        return f"plan({', '.join(map(repr, self.rules))})"

    def __add__(self, other: Plan | Rule) -> Plan:
        """The rules of this plan, then those of the other, or one more."""
        if isinstance(other, Rule):
            return Plan((*self.rules, other))
        return Plan(self.rules + other.rules) if isinstance(other, Plan) else NotImplemented

    def __eq__(self, other: object) -> bool:
        return self.rules == other.rules if isinstance(other, Plan) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.rules)

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Raises: a plan is not a function. The message helps those who put one into `logits_processor=[...]`."""
        raise TypeError(
            "a plan cannot be called: call fastdecode.truncate(logits, plan) or fastdecode.sample(logits, plan); in "
            "logits_processor=[...], pass fastdecode.hf.FusedLogitsProcessor(plan)."
        )

    def packed(self, device: torch.device) -> torch.Tensor:
        """The cuts as a float32 tensor [B or 1, number of cuts, number of fields]; the last one is the draw."""
        packed = self._packed.get(device)
        if packed is None:
            packed = self._packed[device] = _pack(self.cuts, 1 if self.rows is None else self.rows).to(device)
        return packed

    def at(self, t: Parameter) -> Plan:
        """This plan with one more temperature in front."""
        return Plan((temperature(t), *self.rules))

    def packed_at(self, temperatures: tuple[float, ...] | torch.Tensor, device: torch.device) -> torch.Tensor:
        """The cuts of `at(t)` for each temperature, float32 [B or 1, T, number of cuts, number of fields]; with per-row
        temperatures, [B, T], B of them. The last result for numbers is kept for the next call."""
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
    chain: Iterable[Any] = rules  # of rules; Plan refuses anything else
    if len(rules) == 1 and isinstance(rules[0], Iterable) and not isinstance(rules[0], (Rule, str, bytes, Mapping)):
        chain = rules[0]
    return Plan(chain)


PlanLike = Plan | Rule | Sequence[Rule]  # accepted in place of a plan; a plan made once is faster


def as_plan(value: Any) -> Plan:
    """A plan as it is, or the plan of a rule or of several."""
    if isinstance(value, Plan):
        return value
    if isinstance(value, Rule):
        return Plan((value,))
    if isinstance(value, (list, tuple)) and all(isinstance(rule, Rule) for rule in value):
        return Plan(value)
    raise TypeError(
        "plan must be made with fastdecode.plan(...), or be one rule such as fastdecode.min_p(0.05), or a list of rules; got "
        f"{_not_a_rule(value)}."
    )


def _not_a_rule(value: Any) -> str:
    if inspect.isfunction(value):
        return f"the function {value.__name__}: call it with its parameter"
    return described(value)


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
    """In float64, where 1e-30 * 1e-30 * 1e30 is not 0; greedy rows stay greedy."""
    if isinstance(t, torch.Tensor):
        return torch.where(t == 0, 0.0, product * t.double())
    return product * t if t else product * 0.0


def _within_reach(t: Parameter) -> Parameter:
    """A temperature that every engine can divide by. The values of a tensor on a GPU were not checked before: anything but a number >= 0
    makes its row greedy. Engines rely on this function."""
    if isinstance(t, torch.Tensor):
        return torch.where(t >= COLDEST, t.clamp(max=HOTTEST), 0.0).float()
    return min(t, HOTTEST) if t >= COLDEST else 0.0


def _common_rows(rules: tuple[Rule, ...], cuts: tuple[Cut, ...]) -> int | None:
    """The length of the per-row parameters; None if every parameter is one number."""
    lengths = {len(value) for cut in cuts for value in vars(cut).values() if isinstance(value, torch.Tensor)}
    if len(lengths) > 1:
        shown = ", ".join(map(repr, rules))
        raise ValueError(
            f"all per-row parameters of a plan must have one value per row; got lengths {sorted(lengths)} in {shown}."
        )
    return lengths.pop() if lengths else None


def _pack(cuts: tuple[Cut, ...], rows: int) -> torch.Tensor:
    """On the device of the per-row tensors, if any: reading them back would wait for a GPU."""
    columns = [[getattr(cut, name) for name in FIELDS] for cut in cuts]
    numbers = [[0.0 if isinstance(value, torch.Tensor) else float(value) for value in cut] for cut in columns]
    packed = torch.tensor(numbers, dtype=torch.float32, device="cpu").repeat(rows, 1, 1)
    tensors = [(i, j, v) for i, cut in enumerate(columns) for j, v in enumerate(cut) if isinstance(v, torch.Tensor)]
    if tensors:
        packed = packed.to(tensors[0][2].device)
    for i, j, values in tensors:
        packed[:, i, j] = values
    return packed
