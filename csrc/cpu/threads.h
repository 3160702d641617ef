// Work over threads.
#pragma once

#include <stdint.h>

namespace fastdecode {

// Calls run(args, i) for all i in [0, n), on at most `threads` threads, and returns when all are done. `run` may throw std::bad_alloc
// and nothing else; then so does this.
void over_threads(int64_t n, int threads, void (*run)(const void* args, int64_t i), const void* args);

}  // namespace fastdecode
