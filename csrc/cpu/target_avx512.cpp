// The row engine for one instruction set: this file is compiled with its flags, see setup.py.
#define FD_TARGET target_avx512
#include "target.inl"

namespace fastdecode {
const Target kAvx512Target = FD_TARGET::target_named("avx512");
}  // namespace fastdecode
