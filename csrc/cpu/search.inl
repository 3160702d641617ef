// What: the edge of a prefix among n tokens given by arrays of key, w = exp(d) and y = d / ln 2: the key of the last group of
//   tied tokens that a walk by descending key keeps, and the sums up to it.
// Contract: keys finite or -inf, in any order; the arrays are reordered. Equal keys stay or go together.
// Idea: 1. spread the keys over buckets, linearly in the key, adding up each bucket's sums; 2. walk the buckets to the one in
//   which the walk stops (the measure is monotone, so a bucket's end tells); 3. go on inside it; 4. at 24 tokens or
//   fewer, sort and walk one group of ties after the other.
// Who does what: one thread. Numbers: sums in double, in an order that depends on the keys alone.
// Randomness: none. Cost: about 3 ns a token, in practice one round. Limits: none; each round splits off an extreme key.

#include "kernels.inl"

namespace fastdecode {
namespace FD_TARGET {

struct Edge {
  bool stopped = false;  // false: the walk met no edge, everything is kept
  float key = 0;         // the last key kept
  Sums kept;             // sums over the tokens kept
};

FD_FN void add(Sums* sums, float w, float y) {
  sums->n += 1, sums->mass += double(w), sums->moment += double(w) * double(y) * kLn2;
}

FD_FN Sums plus(const Sums& a, const Sums& b) { return {a.n + b.n, a.mass + b.mass, a.moment + b.moment}; }

constexpr int kBuckets = 256, kFew = 24;

// Step 4: `so_far` are the sums over all tokens with larger keys.
static Edge walk(const Cut& cut, const Sums& whole, double need, const Workspace& ws, int64_t n, Sums so_far, float last_key) {
  float* key = ws.key;
  for (int64_t i = 1; i < n; ++i) {  // insertion sort, descending
    const float k = key[i], w = ws.key_w[i], y = ws.key_y[i];
    int64_t at = i;
    for (; at > 0 && key[at - 1] < k; --at) key[at] = key[at - 1], ws.key_w[at] = ws.key_w[at - 1], ws.key_y[at] = ws.key_y[at - 1];
    key[at] = k, ws.key_w[at] = w, ws.key_y[at] = y;
  }
  Edge edge{true, last_key, so_far};
  for (int64_t i = 0; i < n;) {
    Sums through = edge.kept;
    int64_t end = i;
    for (; end < n && key[end] == key[i]; ++end) add(&through, ws.key_w[end], ws.key_y[end]);
    const bool over = stops(cut, edge.kept, through, whole, need);
    if (over && int(cut.stop) == kStopBefore) return edge;
    edge.key = key[i], edge.kept = through;
    if (over) return edge;
    i = end;
  }
  return edge;
}

// `whole` are the sums over all survivors, which may be more tokens than these n; `before` those over tokens with larger keys.
static Edge search(const Cut& cut, const Sums& whole, const Workspace& ws, int64_t n, Sums before = {}) {
  const double need = needed(cut, whole);
  float last_key = INFINITY;
  for (bool inside = false;; inside = true) {
    float high = -INFINITY, low = INFINITY;
    for (int64_t i = 0; i < n; ++i) high = ws.key[i] > high ? ws.key[i] : high, low = ws.key[i] < low ? ws.key[i] : low;
    Sums bucket[kBuckets];
    const double scale = n > kFew && high > low ? (kBuckets - 0.5) / (double(high) - double(low)) : 0.0;
    auto bucket_of = [&](float key) { return int((double(high) - double(key)) * scale); };
    if (scale == 0.0) {  // few tokens, or one group of ties
      Sums through = before;
      for (int64_t i = 0; i < n; ++i) add(&through, ws.key_w[i], ws.key_y[i]);
      if (!inside && !(int(cut.stop) == kStopAfter ? measured(cut, through, whole) >= need && through.n >= cut.keep
                                                   : measured(cut, through, whole) > need && through.n > cut.keep))
        return {false, low, through};
      if (n <= kFew) return walk(cut, whole, need, ws, n, before, last_key);
      const bool over = stops(cut, before, through, whole, need);
      if (over && int(cut.stop) == kStopBefore) return {true, last_key, before};
      return {true, high, through};
    }
    for (int64_t i = 0; i < n; ++i) add(&bucket[bucket_of(ws.key[i])], ws.key_w[i], ws.key_y[i]);

    int at = 0;
    for (Sums through; at < kBuckets; ++at, before = through) {
      through = plus(before, bucket[at]);
      const double so_far = measured(cut, through, whole);
      // A kStopBefore walk can only stop at a group with `keep` tokens before it: more than `keep` by the bucket's end.
      if (int(cut.stop) == kStopAfter ? so_far >= need && through.n >= cut.keep : so_far > need && through.n > cut.keep) break;
    }
    if (at == kBuckets) return {inside, low, before};
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int b = bucket_of(ws.key[i]);
      if (b < at) last_key = ws.key[i] < last_key ? ws.key[i] : last_key;
      if (b == at) ws.key[kept] = ws.key[i], ws.key_w[kept] = ws.key_w[i], ws.key_y[kept] = ws.key_y[i], ++kept;
    }
    n = kept;
  }
}

}  // namespace FD_TARGET
}  // namespace fastdecode
