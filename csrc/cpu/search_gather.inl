// What: a strategy for a prefix: gather all survivors and search them. A strategy is described in search_near_top.inl.
//
// When it pays: the survivors are gathered already, because an earlier cut left few; then nothing is cheaper. It is also the strategy
// that never fails, so it comes last: in short rows, and where the guesses of the other two were wrong.
//
// How:
// 1. Gather the survivors, unless they are, and weigh them at the scale of the cut.
// 2. All tokens of the walk are there, so the search needs no check: its edge is the answer.
//
// Exactness: that of the search (search.inl).
//
// Cost: for n survivors, a pass over the row that copies n logits and n ids, an exponential each, and about two reads each for the
// search.
// Limits: none.
#pragma once

#include <stdint.h>

#include "../cut.h"
#include "exp2.inl"
#include "measure.inl"
#include "narrow.inl"
#include "search.inl"
#include "survivors.inl"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

static bool prefix_by_gathering(Survivors& survivors, const Cut& cut, Scale s) {
  const Workspace& ws = survivors.workspace();
  const Sums whole = survivors.measured_for(cut, s);
  const Keys keys = keys_of(cut, whole, s);
  int64_t n;
  if (survivors.gathered()) {
    survivors.sums_at(s);
    n = survivors.count();
  } else {
    n = gather(survivors.row(), ws, survivors.interval());
    gathered_sums(ws, n, s);
  }
  survivors.keep_found(search_gathered(cut, whole, ws, keys, n), n, keys);
  return true;
}

}  // namespace FD_TARGET
}  // namespace fastdecode
