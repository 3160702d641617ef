// What: the loops that move survivors: out of the row into the workspace, and on within it.
// Contract: gathered tokens lie ascending by id in the workspace's x and id. Entries behind the last one may be overwritten, see kSlop.
// Idea: 1. a group whose maximum lies below the interval is not read; in the others, few vectors hold a survivor; 2. what was gathered
//   is kept in place, packed to the front.
// Who does what: one thread, one row. Numbers: logits are copied exactly. Randomness: none.
// Cost: gather reads the groups that reach the interval; keep_between reads what was gathered. Limits: none.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "row.inl"
#include "simd.inl"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

// Appends the lanes whose bits are set to the n gathered tokens; returns their new number.
FD_FN int64_t append(const Workspace& ws, V x, I id, uint32_t bits, int64_t n) {
  compress_store(x, bits, ws.x + n);
  compress_store(V(id), bits, ws.id + n);
  return n + __builtin_popcount(bits);
}

// 1. Copies the tokens of the interval into the workspace, ascending by id. If there are more than `max_tokens`, gives up and returns -1.
static int64_t gather(const Row& row, const Workspace& ws, Interval interval, int64_t max_tokens = INT64_MAX) {
  const float bottom = interval.bottom();
  int64_t n = 0;
  auto gather_by = [&](auto has) FD_INLINE {
    row.each(-INFINITY, [&](int64_t g, auto x) FD_INLINE {
      if (!(ws.group_max[g] >= bottom) || n > max_tokens) return;
      for (int i = 0; i < kGroupSize; i += 4 * kLanes) {  // few vectors hold any
        M in[4];
        for (int k = 0; k < 4; ++k) in[k] = has(x[i + k * kLanes]);
        if (!bits_of(either(either(in[0], in[1]), either(in[2], in[3])))) continue;
        for (int k = 0; k < 4; ++k) {
          const int at = i + k * kLanes;
          if (bits_of(in[k])) n = append(ws, x[at], iota_from(int32_t(g * kGroupSize + at)), bits_of(in[k]), n);
        }
      }
    });
  };
  if (interval.hi == INFINITY)
    gather_by([=](V x) FD_INLINE { return at_least(x, broadcast(bottom)); });
  else
    gather_by([=](V x) FD_INLINE { return Interval::has(x, bottom, interval.hi); });
  return n > max_tokens ? -1 : n;
}

// 2. Keeps those of n gathered tokens that lie in the interval; ids stay ascending. Returns how many.
static int64_t keep_between(const Workspace& ws, int64_t n, Interval interval) {
  for (int64_t i = n; i < n + kLanes; ++i) ws.x[i] = -INFINITY;
  const float bottom = interval.bottom();
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i += kLanes) {  // what is written lies at or before what was read
    const V x = load(ws.x + i);
    I id;
    memcpy(&id, ws.id + i, sizeof id);
    const uint32_t bits = bits_of(Interval::has(x, bottom, interval.hi));
    if (bits) kept = append(ws, x, id, bits, kept);
  }
  return kept;
}

}  // namespace FD_TARGET
}  // namespace fastdecode
