"""Every tolerance of the test suite, each with its reason. No other file may hold one (test_rooms.py checks that)."""

from __future__ import annotations

# Those by which `python -m fastdecode verify` judges an engine on any machine are part of the package.
from fastdecode.verify.tolerance import EDGE, ENTROPY_EDGE, KEY, LEAD

__all__ = ["EDGE", "ENTROPY_EDGE", "KEY", "LEAD"]

# ---- engine against reference: masks --------------------------------------------------------------------------------

# Such tokens, as a share of those kept. In a flat row a token at the edge holds less mass than EDGE: one of thousands.
EDGE_TOKENS = 1e-4
EDGE_FEW = 2  # and so many where few are kept: the hostile inputs hold rows of entropy 1e-9 (see ENTROPY_EDGE)

# ---- engine against reference: tokens -------------------------------------------------------------------------------

# Draws with such a lead: about 2 * LEAD of them by chance. Above this share, the exception has become the rule.
LEAD_ROWS = 1e-3

# ---- engine against reference: statistics ---------------------------------------------------------------------------

PROBABILITY = 2e-6  # absolute: float32 output (6e-8) of float64 sums over float32 exponentials (2 ulp each)
NATS = 1e-5  # absolute, for log-probabilities above -64: half an ulp there is 4e-6
NATS_RELATIVE = 4e-7  # for larger ones: three float32 roundings
ENTROPY_NATS = 1e-5  # absolute, in nats: an entropy is at most 12.5, and weighs log-probabilities by p

# ---- transcriptions and transformers against reference ---------------------------------------------------------------

# As a share of the need, or in nats: rules.SLACK, and a parameter rounded to float32 (1.2e-7).
EXACT_EDGE = 1.5e-6

# transformers in float32, as people run it: a cumulative sum of 49152 float32 probabilities is off by as much as 6e-5,
# a softmax by 1e-6.
FLOAT32_EDGE = 1e-4

# In float32 p = 1 - 1e-9 is 1 and its surprisal 0: transformers does not know the entropy of a row below this many nats well
# enough to judge Top-H.
LEAST_ENTROPY = 0.05

# Tokens that may be judged differently although no tie is involved, as a share of those kept. In a flat row a token at the
# edge holds less mass than the distance above, so that a few of thousands are bound to.
EXACT_EDGE_TOKENS = 1e-3
FLOAT32_EDGE_TOKENS = 1e-2

# ---- noise ----------------------------------------------------------------------------------------------------------

NOISE = 1e-14  # relative: -log(-log(v)) in float64; two logs, of which libraries round the last bit differently

NOISE_OF_ENGINE = 1e-13  # relative, of -log(v): a polynomial in float64 of our own; near v = 1 it must not lose digits

# ---- worked examples --------------------------------------------------------------------------------------------------

FOUR_DIGITS = 6e-5  # entropies, printed with four digits
WHOLE_MEAN = 0.5  # mean kept counts, printed without decimals
ONE_DIGIT_MEAN = 0.1  # and with one; ties go together here and in sort order there

# ---- distribution tests ----------------------------------------------------------------------------------------------

# The streams are fixed, so a p-value is a constant of the contract, not a dice roll. A right engine passes if none is below
# FAIR (under the null hypothesis one of about 50 such values falls below it once in 20 000 contracts); each planted fault
# must fall below CAUGHT, so that the two can never be confused.
FAIR = 1e-6
CAUGHT = 1e-9

# ---- soft tokens --------------------------------------------------------------------------------------------------------

# Absolute, for densities of soft tokens in nats: Dirichlet's adds (a - 1) ln y over the mixture, with ln y near -1000 at
# concentrations near 0.01, where the float32 record of ln y is off by 6e-5.
SOFT_DENSITY = 1e-4

# Of what an engine mixes in float64 and torch too, from the same float32 logits: a share of 1 + its size. Two float32 roundings
# are 1.2e-7; a density adds up the noise of hundreds of candidates.
SOFT_RELATIVE = 1e-6

# Added to the size of an embedding before its type's epsilon: float32 sums of mixtures in another order, of elements around 1.
EMBEDDED = 1.0

SOFT_FLOAT64 = 1e-12  # absolute, of weights in float64 against the same formula in another order

QUANTILE = 1e-9  # relative, of a gamma quantile against scipy's: the upper tail 1 - u has 10 digits at its thinnest

# Standard errors that a mean may be off. With fixed streams it is off by a constant; beyond 5 it is by chance in one of
# 1.7 million contracts, and a fault must be 10 away.
ERRORS_FAIR, ERRORS_CAUGHT = 5.0, 10.0

CACHED = 2e-5  # absolute: weights and entropies from a tiny model in float32, with its cache and without: logits differ by 1e-6

# ---- selection ---------------------------------------------------------------------------------------------------------

SHARE = 1e-12  # absolute, of numbers around 1: a few float64 roundings of sums and exponentials
FITTED = 1e-3  # of the logarithm of a likelihood: where a minimiser stops, against a search of our own around it

# ---- memory ------------------------------------------------------------------------------------------------------------

# Bytes that 10 000 calls may leave behind: an allocator keeps some; one float32 row of 700 lost at each call would be 28 MB.
LEAK = 8 * 2**20
