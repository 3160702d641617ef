// What: the masses of groups of 256 tokens over the survivors of a row, in the workspace's group_mass, and the scale they are at. The
//   draw wants them where survivors are not gathered.
// Contract: a pass that writes group_mass says so by written() or overwritten(). After a split, the masses of most groups lack the
//   survivors that it gathered near the lower edge; ws.x and ws.w must stay until settle() or the draw.
// Idea: the draw needs exact masses in a few groups only, so tokens near the edge are added where they are asked for.
// Who does what: one thread. Numbers: masses in double. Randomness: none.
// Cost: settle() adds one short sum a group. Limits: none.
#pragma once

#include <math.h>
#include <stdint.h>

#include "exp2.inl"
#include "row.inl"
#include "simd.inl"
#include "workspace.h"

namespace fastdecode {
namespace FD_TARGET {

class GroupMasses {
 public:
  GroupMasses(int64_t groups, const Workspace& ws) : ws_(ws), groups_(groups) {}

  bool are_at(Scale s) const { return at_ == s; }
  bool lack_edge() const { return lacking_up_to_ > -INFINITY; }
  double of(int64_t g) const { return ws_.group_mass[g] + (lacks_edge(g) ? edge_mass(g) : 0); }
  double upper_bound_of(int64_t g) const {  // quicker than the mass itself
    const double most = double(heaviest_lacking_) * double(ws_.run_start[g + 1] - ws_.run_start[g]);
    return ws_.group_mass[g] + (lacks_edge(g) ? most : 0);
  }

  // ---- what happens to them

  // A pass wrote the masses of all survivors.
  void written(Scale s) { at_ = s, lacking_up_to_ = -INFINITY; }

  // A pass wrote other masses there.
  void overwritten() { written({}); }

  // A split wrote the masses of the tokens in `above`, and ws.w is 0 for the gathered tokens that are no survivors. Tokens near the
  // upper edge are few and heavy, so their groups are settled at once.
  void split(Interval above, Scale s) {
    at_ = s;
    lacking_up_to_ = above.hi;
    heaviest_lacking_ = Weights<kFar>(s).of(broadcast(fminf(above.lo, s.base)))[0] * 1.0001f;
    for (int64_t g = 0; g < groups_; ++g)
      if (!lacks_edge(g)) ws_.group_mass[g] += edge_mass(g);
  }

  // All groups get what they lack: the gathered tokens may go after this.
  void settle() {
    for (int64_t g = 0; lack_edge() && g < groups_; ++g)
      if (lacks_edge(g)) ws_.group_mass[g] += edge_mass(g);
    lacking_up_to_ = -INFINITY;
  }

 private:
  bool lacks_edge(int64_t g) const { return ws_.group_max[g] <= lacking_up_to_; }

  double edge_mass(int64_t g) const {
    const int64_t start = ws_.run_start[g], end = ws_.run_start[g + 1];
    V mass = broadcast(0.0f);
    for (int64_t i = start; i < end; i += kLanes)
      mass += select_or_zero(less(iota(), broadcast(float(end - i))), load(ws_.w + i));
    return reduce_sum(pairs_of(mass));
  }

  const Workspace& ws_;
  const int64_t groups_;
  Scale at_;
  float lacking_up_to_ =
      -INFINITY;                // groups with no logit above this lack the survivors near the edge; -inf: no group does
  float heaviest_lacking_ = 0;  // no such survivor weighs more
};

}  // namespace FD_TARGET
}  // namespace fastdecode
