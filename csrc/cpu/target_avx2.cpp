// The row engine for one instruction set: this file is compiled with its flags, see setup.py.
#define FD_TARGET target_avx2
#include "embed.inl"
#include "target.inl"

namespace fastdecode {
const Target kAvx2Target{"avx2",
                         FD_TARGET::truncate_row,
                         FD_TARGET::sample_row,
                         FD_TARGET::exponential_for,
                         FD_TARGET::read_once,
                         FD_TARGET::exp_pass,
                         FD_TARGET::embed_columns};
}  // namespace fastdecode
