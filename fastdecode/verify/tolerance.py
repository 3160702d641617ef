"""How far an engine may be from the reference, each with its reason; the tests judge by the same numbers (tests/support/tolerance.py)."""

from __future__ import annotations

# A token may be judged differently if the exact measure lies so near the need, as a share of it; for a floor, in nats. Half
# of rules.SLACK: prefixes that are exact on paper lie SLACK inside, so every engine must decide them alike.
EDGE = 5e-7

# An entropy that a prefix is measured by, in nats: the engines add up 1 + p + ... in float32 inside a group of 256 tokens,
# which loses 6e-8 of the mass beside the 1. It decides only in rows whose largest probability is above 1 - 1e-6.
ENTROPY_EDGE = 1e-7

# Typicality |-ln p - H| is a float32 number in the engines: two tokens may change places in its order if theirs differ by less
# than this times (1 + |x - max| / T), in nats: four float32 roundings.
KEY = 2.5e-7

# A token may differ if the reference's winner leads by less than this, in nats: the two sums of float32 noise (|noise| < 23,
# half an ulp is 1e-6) and a logit below 64 (4e-6).
LEAD = 1e-5
