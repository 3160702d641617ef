"""The rules and chains that are measured, each with what the peers call it. A temperature other than 1 comes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import generation as theirs

import fastdecode as fd


@dataclass(frozen=True)
class RuleCase:
    """Rules of ours, and transformers' warpers for them, which may be none."""

    name: str
    rules: tuple[fd.Rule, ...]
    warpers: Callable[[], list] | None  # None: transformers has no such rule
    remark: str = ""

    def plan(self, temperature: float) -> fd.Plan:
        return fd.plan(*([] if temperature == 1 else [fd.temperature(temperature)]), *self.rules)

    def hf_warpers(self, temperature: float) -> theirs.LogitsProcessorList | None:
        """As `generate` lists them: no temperature warper at 1."""
        if self.warpers is None:
            return None
        first = [] if temperature == 1 else [theirs.TemperatureLogitsWarper(float(temperature))]
        return theirs.LogitsProcessorList([*first, *self.warpers()])


RULES = (
    RuleCase("none", (), list),
    RuleCase("min_p .05", (fd.min_p(0.05),), lambda: [theirs.MinPLogitsWarper(0.05)]),
    RuleCase("top_k 50", (fd.top_k(50),), lambda: [theirs.TopKLogitsWarper(50)]),
    RuleCase("top_p .95", (fd.top_p(0.95),), lambda: [theirs.TopPLogitsWarper(0.95)]),
    RuleCase("typical .9", (fd.typical_p(0.9),), lambda: [theirs.TypicalLogitsWarper(0.9)]),
    RuleCase("top_h .4", (fd.top_h(0.4),), lambda: [theirs.TopHLogitsWarper(0.4)],
             "transformers' Top-H looks at the 100 largest logits only, ours at all"),
    RuleCase("top_h .4 hf", (fd.top_h(0.4, variant="hf"),), lambda: [theirs.TopHLogitsWarper(0.4)]),
    RuleCase("epsilon 3e-4", (fd.epsilon_cutoff(3e-4),), lambda: [theirs.EpsilonLogitsWarper(3e-4)]),
    RuleCase("eta 3e-4", (fd.eta_cutoff(3e-4),), lambda: [theirs.EtaLogitsWarper(3e-4)]),
    RuleCase("top_n_sigma 1", (fd.top_n_sigma(1.0),), None),
    RuleCase("top_k 50, top_p .95", (fd.top_k(50), fd.top_p(0.95)),
             lambda: [theirs.TopKLogitsWarper(50), theirs.TopPLogitsWarper(0.95)]),
    RuleCase("min_p .05, typical .9", (fd.min_p(0.05), fd.typical_p(0.9)),
             lambda: [theirs.MinPLogitsWarper(0.05), theirs.TypicalLogitsWarper(0.9)]),
    RuleCase("min_p .05, top_h .4", (fd.min_p(0.05), fd.top_h(0.4)),
             lambda: [theirs.MinPLogitsWarper(0.05), theirs.TopHLogitsWarper(0.4)],
             "transformers' Top-H looks at the 100 largest logits only, ours at all"),
)  # fmt: skip

BY_NAME = {case.name: case for case in RULES}
MAIN = ("none", "min_p .05", "top_k 50", "top_p .95", "typical .9", "top_h .4")
