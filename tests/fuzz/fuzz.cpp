// What: random plans x hostile rows x instruction sets for the CPU engine, compiled with sanitizers; tests/support/fuzzed.py builds and
//   runs it (`make fuzz`).
// Contract: every buffer is a block of its own of just its size, and what lies between rows is poisoned: AddressSanitizer sees a
//   read or a write one element too far. Beyond the sanitizers it checks what needs no reference: tokens in range and among the
//   survivors, as many survivors as `kept` says, the same answer with threads, without statistics and in place. Two instruction
//   sets may decide a token at an edge differently, as they add up in another order: rarely, see kEdges; and freely where a share
//   of an entropy decides in a row that is all but certain (tests/support/tolerance.py: ENTROPY_EDGE), so such plans are not compared.
// Idea: a case is a function of (seed, number). Dying, it says both, and the same program runs that case again.
// Usage: fuzz rows|threads SEED SECONDS [FIRST]
#include <stdio.h>
#include <stdlib.h>

#include <chrono>
#include <cmath>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "cpu/engine.h"
#include "dtype.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#endif
extern "C" void __sanitizer_set_death_callback(void (*)(void));
extern "C" const char* __tsan_default_options() { return "halt_on_error=1"; }  // so that it dies in the case at fault

namespace {

using namespace fastdecode;

constexpr float kInf = INFINITY;

thread_local uint64_t case_seed, case_number;

[[noreturn]] void fail(const char* what) {
  fprintf(stderr, "wrong: %s\n", what);
  fprintf(stderr, "case %llu of seed %llu\n", (unsigned long long)case_number, (unsigned long long)case_seed);
  _Exit(1);
}

struct Dice {
  std::mt19937_64 bits;

  int64_t below(int64_t n) { return int64_t(bits() % uint64_t(n)); }
  bool once_in(int64_t n) { return below(n) == 0; }
  float unit() { return float(bits() >> 40) * 0x1p-24f; }
  float normal() { return std::normal_distribution<float>()(bits); }
  template <class T>
  T one_of(std::initializer_list<T> some) {
    return some.begin()[below(int64_t(some.size()))];
  }
};

// Memory of exactly so many elements, none of which is 0 by chance.
template <class T>
struct Block {
  explicit Block(int64_t n) : size(n), at(static_cast<T*>(malloc(size_t(n) * sizeof(T)))) {
    memset(static_cast<void*>(at), 0xca, size_t(n) * sizeof(T));
  }
  ~Block() {
    ASAN_UNPOISON_MEMORY_REGION(at, size_t(size) * sizeof(T));
    free(at);
  }
  Block(const Block&) = delete;
  int64_t size;
  T* at;
};

// ---- rows

float hostile(Dice& dice, int kind, float scale) {
  switch (kind) {
    case 0: return dice.normal() * scale;
    case 1: return std::round(dice.normal() * 3);
    case 2: return dice.once_in(3) ? dice.normal() * scale : -kInf;
    case 3: return scale;
    case 4: return dice.once_in(50) ? -dice.normal() : -kInf;
    case 5: return dice.normal() * 1e-40f;
    case 6: return dice.one_of({0.0f, -0.0f, -1.0f});
    case 7: return dice.one_of({3.402823466e38f, -3.402823466e38f, 0.0f, 1.0f});
    case 8: return dice.normal() + 1e4f;
    case 9: return dice.once_in(200) ? dice.one_of({kInf, NAN, -kInf}) : dice.normal();
    case 10: return -kInf;
    case 11: return dice.once_in(100) ? dice.normal() + 30 : dice.normal() * 0.1f;
    default: return -1.2f * std::log(1 + float(dice.below(100000)));
  }
}

void store_as(void* base, int dtype, int64_t i, float x) {
  if (dtype == kFloat32)
    static_cast<float*>(base)[i] = x;
  else
    static_cast<uint16_t*>(base)[i] = dtype == kFloat16 ? to_f16(x) : to_bf16(x);
}

struct Rows {
  int dtype;
  int64_t batch, vocab, limit, stride, lead;
  std::unique_ptr<Block<uint8_t>> block;

  int64_t elements() const { return lead + (batch - 1) * stride + vocab; }
  void* base() const { return block->at + lead * bytes_of(dtype); }
  float at(int64_t row, int64_t i) const { return load_as_float(base(), dtype, row * stride + i); }
  void allocate() { block.reset(new Block<uint8_t>(elements() * bytes_of(dtype))); }

  void poison() {
    const int64_t size = bytes_of(dtype);
    ASAN_POISON_MEMORY_REGION(block->at, size_t(lead * size));
    for (int64_t row = 0; row + 1 < batch && stride > vocab; ++row)
      ASAN_POISON_MEMORY_REGION(block->at + (lead + row * stride + vocab) * size, size_t((stride - vocab) * size));
  }
  void unpoison() { ASAN_UNPOISON_MEMORY_REGION(block->at, size_t(block->size)); }

  Rows alike() const {
    Rows other{dtype, batch, vocab, limit, stride ? stride : vocab, lead, nullptr};
    other.allocate();
    return other;
  }
  Logits logits() const { return {base(), dtype, batch, vocab, limit, stride}; }
};

int64_t some_vocab(Dice& dice) {
  const int64_t near = dice.one_of<int64_t>({1, 2, 16, 32, 64, 128, 256, 512, 768, 1024, 2048});
  switch (dice.below(4)) {
    case 0: return std::max<int64_t>(1, near + dice.below(5) - 2);
    case 1: return 1 + dice.below(40);
    case 2: return 1 + dice.below(1500);
    default: return dice.once_in(8) ? 1 + dice.below(40000) : 1 + dice.below(5000);
  }
}

Rows some_rows(Dice& dice) {
  Rows rows;
  rows.dtype = int(dice.below(3));
  rows.batch = 1 + dice.below(5);
  rows.vocab = some_vocab(dice);
  rows.limit = dice.once_in(4) ? 1 + dice.below(rows.vocab) : rows.vocab;
  rows.stride = dice.once_in(10) ? 0 : rows.vocab + dice.one_of<int64_t>({0, 0, 1, 3, 16, 257});
  rows.lead = dice.one_of<int64_t>({0, 0, 1, 2, 3});
  rows.allocate();
  for (int64_t row = 0; row < rows.batch; ++row) {
    const int kind = int(dice.below(13));
    const float scale = dice.one_of({0.01f, 1.0f, 3.0f, 10.0f, 100.0f});
    const bool nothing_beyond = dice.once_in(2);
    for (int64_t i = 0; i < rows.vocab; ++i) {
      const float x = i >= rows.limit && nothing_beyond ? NAN : hostile(dice, kind, scale);
      store_as(rows.base(), rows.dtype, row * rows.stride + i, x);
    }
  }
  return rows;
}

// ---- plans

Cut some_cut(Dice& dice, int64_t vocab) {
  Cut cut{kFloor, kByLogit, kCount, kStopAfter, 1, kInf, kInf, 1, 0, 0, 0, 0, kInf};
  cut.keep = dice.once_in(5) ? float(1 + dice.below(dice.once_in(4) ? 1000000 : 20)) : 1;
  const float share = dice.once_in(10) ? dice.one_of({1e-30f, 1e-6f, 1.0f}) : std::max(dice.unit(), 1e-7f);
  if (dice.once_in(2)) {
    cut.offset = dice.once_in(8) ? dice.one_of({0.0f, -kInf}) : std::log(share) * dice.one_of({0.1f, 1.0f, 3.0f});
    switch (dice.below(5)) {
      case 0: break;
      case 1: cut.w_lse = 1, cut.offset_h = dice.once_in(2) ? kInf : cut.offset / 2; break;
      case 2: cut.w_lse = -1; break;
      case 3: cut.w_sd = -share * dice.one_of({0.5f, 2.0f, 6.0f}), cut.offset = 0; break;
      default: cut.w_lse = 1, cut.w_p2 = 1, cut.offset = 0;
    }
    return cut;
  }
  cut.kind = kPrefix, cut.measure = float(dice.below(4));
  cut.need = cut.measure == kCount ? float(1 + dice.below(vocab + 3)) : share;
  if (dice.once_in(12)) cut.need = kInf;
  if (cut.measure == kMass && dice.once_in(2)) cut.order = kByTypicality;
  if (cut.measure == kSurprisal || cut.measure == kEntropy) cut.stop = kStopBefore, cut.keep = 1;
  if (cut.measure == kSurprisal) cut.within = 100;
  return cut;
}

struct Plans {
  std::vector<Cut> cuts;  // [rows or 1, temperatures, count]
  int count;
  int64_t plans, temperatures;

  Plan plan() const { return {cuts.data(), count, plans > 1 ? int64_t(count) * temperatures : 0}; }
};

float some_temperature(Dice& dice) {
  return dice.once_in(3) ? dice.one_of({0.0f, 1e-3f, 0.1f, 50.0f}) : dice.one_of({1.0f, 0.7f, 1.5f, 0.3f + dice.unit()});
}

Plans some_plans(Dice& dice, const Rows& rows) {
  Plans made;
  made.count = 1 + int(dice.one_of({0, 1, 1, 2, 3, 4}));
  made.plans = dice.once_in(2) ? rows.batch : 1;
  made.temperatures = dice.once_in(5) ? 2 + dice.below(2) : 1;
  std::vector<Cut> shape;  // kind, order, measure and stop are those of all rows
  for (int i = 0; i + 1 < made.count; ++i) shape.push_back(some_cut(dice, rows.limit));
  for (int64_t p = 0; p < made.plans * made.temperatures; ++p) {
    float temperature = some_temperature(dice);
    for (int i = 0; i + 1 < made.count; ++i) {
      Cut cut = shape[size_t(i)];
      if (p > 0 && cut.kind == kPrefix && cut.need < kInf && dice.once_in(2)) cut.need *= 0.5f + 0.5f * dice.unit();
      if (cut.measure == kCount && cut.need < kInf) cut.need = std::ceil(cut.need);
      if (dice.once_in(4)) temperature *= some_temperature(dice);
      cut.temperature = temperature;
      made.cuts.push_back(cut);
    }
    made.cuts.push_back({kDraw, 0, 0, 0, temperature, kInf, kInf, 1, 0, 0, 0, 0, kInf});
  }
  return made;
}

// ---- one case

// Everything that a call of `sample` writes.
struct Answer {
  Block<int64_t> tokens, kept, top_ids;
  Block<float> logprobs, raw, entropy, kept_mass, max_prob, margin, top, of;
  Block<uint8_t> status;

  Answer(int64_t rows, int64_t draws, int64_t most, int64_t ids)
      : tokens(draws), kept(rows), top_ids(most), logprobs(draws), raw(draws), entropy(rows), kept_mass(rows),
        max_prob(rows), margin(rows), top(most), of(ids), status(rows) {}
};

struct Case {
  Rows rows;
  Plans plans;
  int64_t samples, most, ids_per_row, batch;  // batch: rows times temperatures
  int64_t seed, step;
  std::unique_ptr<Block<int64_t>> streams, ids;

  explicit Case(Dice& dice) : rows(some_rows(dice)), plans(some_plans(dice, rows)) {
    samples = dice.once_in(4) ? 1 + dice.below(40) : 1;
    const bool one = plans.temperatures == 1;
    most = one && dice.once_in(3) ? 1 + dice.below(std::min<int64_t>(rows.limit, 8)) : 0;
    ids_per_row = one && dice.once_in(3) ? 1 + dice.below(4) : 0;
    batch = rows.batch * plans.temperatures;
    seed = int64_t(dice.bits()), step = dice.below(int64_t(1) << 32);
    streams.reset(new Block<int64_t>(rows.batch));
    for (int64_t r = 0; r < rows.batch; ++r) streams->at[r] = dice.below(int64_t(1) << 40);
    ids.reset(new Block<int64_t>(rows.batch * ids_per_row));
    for (int64_t i = 0; i < ids->size; ++i) ids->at[i] = dice.below(rows.limit);
    rows.poison();
  }

  std::unique_ptr<Answer> sampled(bool all, int threads) const {
    std::unique_ptr<Answer> answer(new Answer(batch, batch * samples, rows.batch * most, rows.batch * ids_per_row));
    SampleArgs args;
    args.logits = rows.logits(), args.plan = plans.plan(), args.temperatures = plans.temperatures;
    args.seed = {&seed, 0}, args.step = {&step, 0}, args.stream = {streams->at, 1};
    args.num_samples = samples, args.tokens = answer->tokens.at, args.logprobs = answer->logprobs.at;
    args.kept = answer->kept.at, args.status = answer->status.at;
    if (all) {
      args.raw_logprobs = answer->raw.at, args.entropy = answer->entropy.at, args.kept_mass = answer->kept_mass.at;
      args.max_prob = answer->max_prob.at, args.margin = answer->margin.at;
      args.top = most, args.top_logprobs = answer->top.at, args.top_ids = answer->top_ids.at;
      args.ids_per_row = ids_per_row, args.ids = ids->at, args.logprobs_of = answer->of.at;
    }
    sample(args, threads);
    return answer;
  }

  Rows truncated(int threads) const {
    Rows out = rows.alike();
    out.poison();
    truncate({rows.logits(), plans.plan(), out.base(), out.stride, NAN}, threads);
    out.unpoison();
    return out;
  }
};

template <class T>
bool same(const Block<T>& a, const Block<T>& b) {
  return memcmp(a.at, b.at, size_t(a.size) * sizeof(T)) == 0;
}

bool agree(const Answer& got, const Answer& want) {
  return same(got.tokens, want.tokens) && same(got.kept, want.kept) && same(got.status, want.status);
}

void check_tokens(const Case& one, const Answer& got) {
  for (int64_t r = 0; r < one.batch; ++r)
    for (int64_t s = 0; s < one.samples; ++s) {
      const int64_t token = got.tokens.at[r * one.samples + s];
      if (got.status.at[r] != kOk && token != -1) fail("the token of a flagged row is not -1");
      if (got.status.at[r] == kOk && (token < 0 || token >= one.rows.limit)) fail("a token is out of range");
      if (token >= 0 && one.rows.at(r / one.plans.temperatures, token) == -kInf) fail("a token of logit -inf was drawn");
    }
}

void check_masks(const Case& one, const Answer& got, const Rows& out) {
  for (int64_t r = 0; r < one.batch; ++r) {
    if (got.status.at[r] == kNan) continue;
    int64_t survivors = 0;
    for (int64_t i = 0; i < one.rows.vocab; ++i) survivors += !std::isnan(out.at(r, i));
    if (survivors != got.kept.at[r]) fail("truncate and sample keep different numbers of tokens");
    for (int64_t s = 0; s < one.samples && got.status.at[r] == kOk; ++s)
      if (std::isnan(out.at(r, got.tokens.at[r * one.samples + s]))) fail("a token was drawn that truncate removes");
  }
}

// Cases in which instruction sets differ, one in so many at most.
constexpr uint64_t kEdges = 1000;
uint64_t at_edges = 0;

void run_case(uint64_t seed, uint64_t number) {
  case_seed = seed, case_number = number;
  Dice dice{std::mt19937_64(seed * 0x9e3779b97f4a7c15ull + number)};
  Case one(dice);
  const int threads = dice.once_in(2) ? 1 : 3;
  std::unique_ptr<Answer> first;
  std::unique_ptr<Rows> mask, first_mask;
  bool differ = false;
  for (const std::string& name : targets()) {
    use_target(name);
    std::unique_ptr<Answer> got = one.sampled(true, threads);
    check_tokens(one, *got);
    if (!agree(*one.sampled(false, 1), *got)) fail("other tokens with statistics or with threads");
    if (one.plans.temperatures == 1) {
      mask.reset(new Rows(one.truncated(threads)));
      check_masks(one, *got, *mask);
      if (!first_mask) first_mask = std::move(mask), mask.reset(new Rows(one.truncated(1)));
      differ |= !same(*mask->block, *first_mask->block);
    }
    if (!first) first = std::move(got);
    else differ |= !agree(*got, *first);
  }
  for (const Cut& cut : one.plans.cuts) differ &= cut.measure != kSurprisal && cut.measure != kEntropy;
  if (differ) fprintf(stderr, "instruction sets differ in case %llu\n", (unsigned long long)number), ++at_edges;
  if (mask && one.rows.stride) {  // in place, with the last instruction set
    Rows& rows = one.rows;
    truncate({rows.logits(), one.plans.plan(), rows.base(), rows.stride, NAN}, threads);
    rows.unpoison();
    for (int64_t r = 0; r < rows.batch; ++r) {
      const int64_t size = bytes_of(rows.dtype);
      const int64_t at = (rows.lead + r * rows.stride) * size;
      if (memcmp(rows.block->at + at, mask->block->at + at, size_t(rows.vocab * size)) != 0) fail("in place: another mask");
    }
  }
}

// Many callers at once, each asking for helpers: all answers are those of one thread.
void run_caller(uint64_t seed, uint64_t caller, double seconds, uint64_t* cases) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  for (uint64_t number = caller << 40; std::chrono::steady_clock::now() < end; ++number, ++*cases) {
    case_seed = seed, case_number = number;
    Dice dice{std::mt19937_64(seed * 0x9e3779b97f4a7c15ull + number)};
    const Case one(dice);
    if (!agree(*one.sampled(true, 3), *one.sampled(false, 1))) fail("one thread and three draw other tokens");
    if (one.plans.temperatures == 1 && !same(*one.truncated(3).block, *one.truncated(1).block))
      fail("the masks of one thread and of three differ");
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) return fprintf(stderr, "usage: fuzz rows|threads SEED SECONDS [FIRST]\n"), 2;
  const bool by_rows = arguments[1][0] == 'r';
  const uint64_t seed = strtoull(arguments[2], nullptr, 10), first = count > 4 ? strtoull(arguments[4], nullptr, 10) : 0;
  const double seconds = atof(arguments[3]);
  __sanitizer_set_death_callback(
      [] { fprintf(stderr, "case %llu of seed %llu\n", (unsigned long long)case_number, (unsigned long long)case_seed); });
  uint64_t cases = 0;
  if (by_rows) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    do run_case(seed, first + cases++);
    while (std::chrono::steady_clock::now() < end);
  } else {
    constexpr int kCallers = 4;
    uint64_t each[kCallers] = {};
    std::vector<std::thread> callers;
    for (int i = 0; i < kCallers; ++i) callers.emplace_back(run_caller, seed, uint64_t(i), seconds, &each[i]);
    for (std::thread& caller : callers) caller.join();
    for (uint64_t n : each) cases += n;
  }
  printf("%llu cases; instruction sets differ in %llu\n", (unsigned long long)cases, (unsigned long long)at_edges);
  if (at_edges > 2 + cases / kEdges) return fprintf(stderr, "wrong: they differ too often\n"), 1;
}
