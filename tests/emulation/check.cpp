// A program for the sanitizers: rows of every size, type and alignment, by clusters of every size, kept on chip or not. All must
// answer alike, bit for bit, and nothing may be read or written that is not theirs: each array is a piece of heap of just its size.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <exception>
#include <memory>
#include <vector>

#include "../../csrc/cuda/engine.h"
#include "../../csrc/dtype.h"
#include "../../csrc/philox.h"

using namespace fastdecode;

namespace {

uint32_t random_word(uint64_t stream, uint32_t i) { return words_of({2026, 0, stream}, i / 4).w[i % 4]; }

float random_logit(uint64_t stream, uint32_t i, int kind) {
  const double u = uniform_of(random_word(stream, i)), v = uniform_of(random_word(stream + 1000, i));
  const double normal = sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
  switch (kind) {
    case 0: return float(0.3 * normal);                  // flat
    case 1: return float(4 * normal);                    // peaked
    case 2: return float(floor(2 * normal));             // ties
    case 3: return u < 0.7 ? -INFINITY : float(normal);  // holes
    default: return 2.5f;
  }
}

Cut cut_of(int kind, int order, int measure, int stop, float need) {
  Cut cut{};
  cut.kind = float(kind), cut.order = float(order), cut.measure = float(measure), cut.stop = float(stop);
  cut.temperature = 1, cut.need = need, cut.within = INFINITY, cut.keep = 1, cut.offset = 0, cut.offset_h = INFINITY;
  return cut;
}

std::vector<std::vector<Cut>> plans() {
  const Cut draw = cut_of(kDraw, 0, 0, 0, INFINITY);
  Cut cold = draw, floor = cut_of(kFloor, 0, 0, 0, INFINITY), spread = floor,
      within = cut_of(kPrefix, 0, kSurprisal, 1, 0.4f);
  cold.temperature = 0, floor.offset = -3, floor.keep = 5, spread.w_sd = -1.5f, spread.w_p2 = 0.1f, spread.w_lse = 0.5f;
  within.within = 100;
  return {{draw},
          {cold},
          {floor, draw},
          {spread, draw},
          {within, draw},
          {cut_of(kPrefix, 0, kCount, 0, 50), cut_of(kPrefix, 0, kMass, 0, 0.9f), draw},
          {cut_of(kPrefix, 0, kMass, 0, 0.95f), draw},
          {cut_of(kPrefix, 0, kEntropy, 1, 0.8f), draw},
          {cut_of(kPrefix, kByTypicality, kMass, 0, 0.8f), floor, draw}};
}

struct Answer {
  std::vector<char> bytes;
  template <class T>
  void add(const T* from, size_t n) {
    const char* at = reinterpret_cast<const char*>(from);
    bytes.insert(bytes.end(), at, at + n * sizeof(T));
  }
};

Answer ask(const std::vector<float>& x, int dtype, const std::vector<Cut>& plan, int offset, cuda::Where where) {
  const int64_t v = int64_t(x.size()), size = bytes_of(dtype);
  // No byte more than the row after it, whatever the alignment before it.
  std::unique_ptr<char, void (*)(void*)> memory(static_cast<char*>(malloc(size_t((v + offset) * size))), free);
  std::unique_ptr<char, void (*)(void*)> target(static_cast<char*>(malloc(size_t((v + offset) * size))), free);
  char* const base = memory.get() + offset * size;
  for (int64_t i = 0; i < v; ++i) store_from_float(base, dtype, i, x[size_t(i)]);

  constexpr int kSamples = 3;
  std::vector<int64_t> tokens(kSamples), top_ids(1), kept(1), ids(1, v / 2);
  std::vector<float> logprobs(kSamples), raw(kSamples), numbers(4), top(1), of_ids(1);
  std::vector<uint8_t> status(1);
  SampleArgs args;
  args.logits = {base, dtype, 1, v, v, v};
  args.plan = {plan.data(), int(plan.size()), 0};
  args.num_samples = kSamples, args.tokens = tokens.data(), args.logprobs = logprobs.data(), args.kept = kept.data();
  args.status = status.data(), args.raw_logprobs = raw.data(), args.entropy = &numbers[0], args.kept_mass = &numbers[1];
  args.max_prob = &numbers[2], args.margin = &numbers[3], args.top = plan.size() > 1, args.top_logprobs = top.data();
  args.top_ids = top_ids.data(), args.ids_per_row = 1, args.ids = ids.data(), args.logprobs_of = of_ids.data();
  cuda::sample(args, 7, 3, where);

  TruncateArgs masked;
  masked.logits = args.logits, masked.plan = args.plan, masked.filter_value = -INFINITY;
  masked.out = target.get() + offset * size, masked.out_row_stride = v;
  cuda::truncate(masked, where);
  Answer answer;
  answer.add(tokens.data(), kSamples), answer.add(logprobs.data(), kSamples), answer.add(raw.data(), kSamples);
  answer.add(kept.data(), 1), answer.add(status.data(), 1), answer.add(numbers.data(), 4), answer.add(top.data(), 1);
  answer.add(top_ids.data(), 1), answer.add(of_ids.data(), 1);
  answer.add(static_cast<char*>(masked.out), size_t(v * size));
  return answer;
}

}  // namespace

int main() {
  int asked = 0;
  try {
    int turn = 0;  // through ranks, offsets and residence: all of them with each, though not each with all
    for (const int64_t v : {1, 31, 257, 1000, 5000, 9001})
      for (int kind = 0; kind < 5; ++kind)
        for (const auto& plan : plans()) {
          const int dtype = turn % 3;
          std::vector<float> x;
          for (int64_t i = 0; i < v; ++i) x.push_back(random_logit(uint64_t(v), uint32_t(i), kind));
          const Answer want = ask(x, dtype, plan, 0, {0, nullptr, 1});
          for (const int ranks : {2, 4, 8, 16}) {
            ++turn;
            if (v > 300 && turn % 5) continue;
            const int offset = turn % 9, device = turn % 2;
            const Answer got = ask(x, dtype, plan, offset, {device, nullptr, ranks});
            ++asked;
            if (got.bytes != want.bytes) {
              printf("V = %lld, kind %d, type %d, %d blocks, offset %d, device %d: another answer than of one block\n",
                     static_cast<long long>(v), kind, dtype, ranks, offset, device);
              return 1;
            }
          }
        }
  } catch (const std::exception& error) {
    printf("%s\n", error.what());
    return 1;
  }
  printf("%d answers alike\n", asked);
  return 0;
}
