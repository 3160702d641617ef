// The row engine for one instruction set: this file is compiled with its flags, see setup.py.
#define FD_TARGET target_avx2
#include "target.inl"

const fastdecode::Target fastdecode::kAvx2Target{"avx2", fastdecode::FD_TARGET::truncate_row, fastdecode::FD_TARGET::sample_row,
                                            fastdecode::FD_TARGET::exponential_for};
