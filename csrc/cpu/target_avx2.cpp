// The row engine for one instruction set: this file is compiled with its flags, see setup.py.
#define FD_TARGET target_avx2
#include "target.inl"

namespace fastdecode {
const Target kAvx2Target = FD_TARGET::target_named("avx2");
}  // namespace fastdecode
