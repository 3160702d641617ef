// The meaning of a cut, for every C++ and CUDA engine: the record, the sums over survivors, the floor, the measure.
//
// Plain C++17 without includes beyond <math.h>; host and device. The twin in Python is fastdecode/rules.py, whose docstring
// says in words what is said here in code. Nothing in this file, and nothing below it, knows the name of a rule.
#pragma once

#include <math.h>

#if defined(__CUDACC__)
#define FD_FN static __host__ __device__ __forceinline__
#else
#define FD_FN static inline __attribute__((always_inline))
#endif

namespace fastdecode {

enum Kind { kFloor = 0, kPrefix = 1, kDraw = 2 };
enum Order { kByLogit = 0, kByTypicality = 1 };
enum Measure { kCount = 0, kMass = 1, kSurprisal = 2, kEntropy = 3 };
enum Stop { kStopAfter = 0, kStopBefore = 1 };

// One row of a packed plan: float32 [number of cuts, kFields] for each row of logits (or one for all).
struct Cut {
  float kind, order, measure, stop;
  float temperature, need, within, keep;
  float w_lse, w_sd, w_p2, offset, offset_h;
};
constexpr int kFields = 13;
static_assert(sizeof(Cut) == kFields * sizeof(float), "a packed plan is read as an array of Cut");
#define FD_CUT_FIELDS                                                                                             \
  "kind", "order", "measure", "stop", "temperature", "need", "within", "keep", "w_lse", "w_sd", "w_p2", "offset", \
      "offset_h"

// A need or floor met to within one part in a million counts as met (rules.py: SLACK).
constexpr double kSlack = 1e-6;

// Below this entropy, in nats, only the largest token can be drawn, and a share of the entropy means nothing: the cut keeps that token
// alone (rules.py: CERTAIN). Engines end weights at 2^-100; their sums are exact to a part in a million down to this entropy.
constexpr double kCertain = 1e-10;

// Sums over a set of tokens, with d = (x - max) / T and any fixed max >= all x of the set: only differences of d matter
// to everything below but the floor, which wants the set's own maximum.
struct Sums {
  double n = 0;       // tokens
  double mass = 0;    // sum exp(d)
  double moment = 0;  // sum exp(d) * d
};

FD_FN double entropy_of(const Sums& s) { return log(s.mass) - s.moment / s.mass; }

// What a prefix adds up, for the tokens walked so far (`part`) of all survivors (`whole`).
FD_FN double measured(const Cut& cut, const Sums& part, const Sums& whole) {
  switch (int(cut.measure)) {
    case kCount: return part.n;
    case kMass: return part.mass;
    case kSurprisal: return (part.mass * log(whole.mass) - part.moment) / whole.mass;
    default: return entropy_of(part);
  }
}

// What it must reach; the slack is already in it.
FD_FN double needed(const Cut& cut, const Sums& whole) {
  const double slack = int(cut.stop) == kStopAfter ? -kSlack : kSlack;
  switch (int(cut.measure)) {
    case kCount: return double(cut.need);
    case kMass: return double(cut.need) * whole.mass * (1 + slack);
    default: break;
  }
  if (cut.need == INFINITY) return double(INFINITY);  // off in this row, however certain it is
  const double entropy = entropy_of(whole);
  return entropy < kCertain ? -double(INFINITY) : double(cut.need) * entropy * (1 + slack);
}

// Is the walk over at the group of tied tokens that takes the sums from `before` to `through`? A kStopAfter prefix then
// keeps that group, a kStopBefore prefix does not. Monotone along the walk, which is why the edge can be searched for.
FD_FN bool stops(const Cut& cut, const Sums& before, const Sums& through, const Sums& whole, double need) {
  const double so_far = measured(cut, through, whole);
  return int(cut.stop) == kStopAfter ? so_far >= need && through.n >= cut.keep : so_far > need && before.n >= cut.keep;
}

// Is the end of the walk among tokens with these sums? (For a kStopBefore walk: may it be?)
FD_FN bool reaches(const Cut& cut, const Sums& part, const Sums& whole, double need) {
  const double so_far = measured(cut, part, whole);
  return int(cut.stop) == kStopAfter ? so_far >= need && part.n >= cut.keep : so_far > need && part.n > cut.keep;
}

// What a floor may look at; d is relative to the survivors' own maximum here.
struct Whole {
  double ln_mass = 0, entropy = 0, sd = 0, ln_p2 = 0;
};

FD_FN bool wants_sums(const Cut& cut) {
  return int(cut.kind) == kPrefix ? int(cut.measure) != kCount || int(cut.order) == kByTypicality
                                  : cut.w_lse != 0 || cut.w_p2 != 0 || cut.offset_h < INFINITY;
}

// Does the measure of a prefix use the moment?
FD_FN bool measures_moment(const Cut& cut) { return int(cut.measure) == kSurprisal || int(cut.measure) == kEntropy; }

FD_FN bool wants_moment(const Cut& cut) {
  return int(cut.kind) == kPrefix ? measures_moment(cut) || int(cut.order) == kByTypicality : cut.offset_h < INFINITY;
}

// The smallest d that a floor keeps; never above 0, so the maximum always stays.
FD_FN double floor_of(const Cut& cut, const Whole& whole) {
  double edge = double(cut.offset);
  if (cut.offset_h < INFINITY) edge = fmin(edge, double(cut.offset_h) - whole.entropy);
  if (cut.w_lse != 0) edge += double(cut.w_lse) * whole.ln_mass;
  if (cut.w_sd != 0) edge += double(cut.w_sd) * whole.sd;
  if (cut.w_p2 != 0) edge += double(cut.w_p2) * whole.ln_p2;
  return fmin(edge - kSlack, 0.0);
}

}  // namespace fastdecode
