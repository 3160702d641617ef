// An emulated mbarrier: what a phase still waits for; and what came late, which is written when somebody has waited for it.
#pragma once

#include <string.h>

#include <string>
#include <vector>

namespace fastdecode {
namespace cuda {
namespace emulated {

struct Letter {
  char* to;
  std::string bytes;
};

struct BarState {
  int expected = 0, pending = 0;  // arrivals
  long bytes = 0;                 // promised, and not there yet
  int phase = 0;
  std::vector<Letter> coming, here;

  bool has_passed(int parity) const { return (phase & 1) != parity; }
  bool is_at_rest() const { return bytes == 0 && pending == expected && coming.empty() && here.empty(); }

  void deliver() {
    for (const Letter& letter : here) memcpy(letter.to, letter.bytes.data(), letter.bytes.size());
    here.clear();
  }

  void end_phase() {
    if (pending != 0 || bytes != 0) return;
    ++phase, pending = expected;
    for (Letter& letter : coming) here.push_back(std::move(letter));
    coming.clear();
  }
};

}  // namespace emulated
}  // namespace cuda
}  // namespace fastdecode
