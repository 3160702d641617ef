// Soft tokens and their embeddings on a CPU: a team is one thread; rows, and columns of embeddings, go over the engine's threads.
#include "soft.h"

#include <stdint.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "../args.h"
#include "../dtype.h"
#include "../mixture.h"
#include "engine.h"
#include "target.h"
#include "threads.h"

namespace fastdecode {
namespace {

struct Alone {
  int lane() const { return 0; }
  int lanes() const { return 1; }
  double most(double x) const { return x; }
  double sum(double x) const { return x; }

  // write(i, place) for each of n keys; the largest has place 0, and of equals the first.
  template <class Write>
  void in_order(const double* key, int64_t n, Write write) const {
    static thread_local std::vector<int64_t> order;
    order.resize(size_t(n));
    for (int64_t i = 0; i < n; ++i) order[size_t(i)] = i;
    std::sort(order.begin(), order.end(),
              [key](int64_t a, int64_t b) { return key[a] > key[b] || (key[a] == key[b] && a < b); });
    for (int64_t place = 0; place < n; ++place) write(order[size_t(place)], place);
  }
};

void soften_one(const void* opaque, int64_t r) {
  const SoftArgs& args = *static_cast<const SoftArgs*>(opaque);
  static thread_local std::vector<double> room;
  if (room.size() < size_t(3 * args.width)) room.resize(size_t(3 * args.width));
  soften_row(args, r, room.data(), Alone{});
}

// The threads that are worth waking for this many nanoseconds of work.
int helped(int threads, double nanoseconds) { return nanoseconds < 30e3 ? 1 : threads; }

constexpr int64_t kColumns = 1024;  // of an embedding, for one thread

struct Embedding {
  const EmbedArgs* args;
  const Target* target;
  int64_t parts;  // of a row
};

void embed_part(const void* opaque, int64_t i) {
  const Embedding& e = *static_cast<const Embedding*>(opaque);
  const int64_t first = i % e.parts * kColumns;
  e.target->embed_columns(*e.args, i / e.parts, first, std::min(kColumns, e.args->columns - first));
}

}  // namespace

void soften(const SoftArgs& args, int threads) {
  const double each = args.noise == kDirichlet ? 1000 : args.noise == kGumbel ? 60 : 20;
  over_threads(args.logits.rows, helped(threads, double(args.logits.rows * args.width) * each), soften_one, &args);
}

void embed_by(const Target& target, const EmbedArgs& args, int threads) {
  for (int64_t i = 0; i < args.rows * args.width; ++i)
    if (args.ids[i] >= args.vocab)
      throw std::out_of_range("weight must have a row for every id of the soft tokens; got " +
                              std::to_string(args.vocab) + " rows and the id " + std::to_string(args.ids[i]) +
                              ": pass the model's embedding table.");
  const Embedding whole{&args, &target, (args.columns + kColumns - 1) / kColumns};
  const double bytes = double(args.rows * args.width * args.columns) * double(bytes_of(args.dtype));
  over_threads(args.rows * whole.parts, helped(threads, bytes / 4), embed_part, &whole);
}

}  // namespace fastdecode
