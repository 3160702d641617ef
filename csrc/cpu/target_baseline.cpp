// The row engine for one instruction set: this file is compiled with its flags, see setup.py.
#define FD_TARGET target_baseline
#include "target.inl"

namespace fastdecode {
const Target kBaselineTarget = FD_TARGET::target_named("baseline");
}  // namespace fastdecode
