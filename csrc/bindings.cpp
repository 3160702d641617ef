// The only file that knows pybind11: Python numbers to pointers, strides and sizes. Arguments were checked by ops.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>

#include "cpu/engine.h"
#include "dtype.h"
#include "philox.h"

namespace py = pybind11;
using namespace fastdecode;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Logits logits_of(uintptr_t base, int dtype, int64_t rows, int64_t vocab, int64_t row_stride, int64_t limit) {
  if (dtype < kFloat32 || dtype > kBFloat16) throw std::invalid_argument("fastdecode._native: unknown dtype code");
  return {at<const void>(base), dtype, rows, vocab, limit, row_stride};
}

// `plans` of rows, or 1 for all of them; `temperatures` of `count` cuts in each.
Plan plan_of(uintptr_t cuts, int64_t plans, int count, int64_t temperatures = 1) {
  return {at<const Cut>(cuts), count, plans == 1 ? 0 : temperatures * count};
}

void truncate_cpu(uintptr_t base, int dtype, int64_t rows, int64_t vocab, int64_t row_stride, int64_t limit,
                  uintptr_t cuts, int64_t plans, int count, uintptr_t out, int64_t out_row_stride, float filter_value,
                  int threads) {
  TruncateArgs args;
  args.logits = logits_of(base, dtype, rows, vocab, row_stride, limit);
  args.plan = plan_of(cuts, plans, count);
  args.out = at<void>(out);
  args.out_row_stride = out_row_stride;
  args.filter_value = filter_value;
  py::gil_scoped_release release;
  truncate(args, threads);
}

// A coordinate is an address and a stride, or a number that the caller keeps alive here.
struct Number {
  int64_t value;
  Coordinate as_coordinate(uintptr_t address, int64_t stride) const {
    return address ? Coordinate{at<const int64_t>(address), stride} : Coordinate{&value, 0};
  }
};

void sample_cpu(uintptr_t base, int dtype, int64_t rows, int64_t vocab, int64_t row_stride, int64_t limit,
                uintptr_t cuts, int64_t plans, int count, int64_t seed, uintptr_t seeds, int64_t seed_stride,
                int64_t step, uintptr_t steps, int64_t step_stride, uintptr_t streams, int64_t stream_stride,
                int64_t temperatures, int64_t num_samples, uintptr_t tokens, uintptr_t logprobs, uintptr_t kept,
                uintptr_t status, uintptr_t raw_logprobs, uintptr_t entropy, uintptr_t kept_mass, uintptr_t max_prob,
                uintptr_t margin, int64_t top, uintptr_t top_logprobs, uintptr_t top_ids, int64_t ids_per_row,
                uintptr_t ids, uintptr_t logprobs_of, int threads) {
  const Number the_seed{seed}, the_step{step};
  SampleArgs args;
  args.logits = logits_of(base, dtype, rows, vocab, row_stride, limit);
  args.plan = plan_of(cuts, plans, count, temperatures);
  args.temperatures = temperatures;
  args.seed = the_seed.as_coordinate(seeds, seed_stride);
  args.step = the_step.as_coordinate(steps, step_stride);
  args.stream = {at<const int64_t>(streams), stream_stride};
  args.num_samples = num_samples;
  args.tokens = at<int64_t>(tokens), args.logprobs = at<float>(logprobs);
  args.kept = at<int64_t>(kept), args.status = at<uint8_t>(status);
  args.raw_logprobs = at<float>(raw_logprobs), args.entropy = at<float>(entropy), args.kept_mass = at<float>(kept_mass);
  args.max_prob = at<float>(max_prob), args.margin = at<float>(margin);
  args.top = top, args.top_logprobs = at<float>(top_logprobs), args.top_ids = at<int64_t>(top_ids);
  args.ids_per_row = ids_per_row, args.ids = at<const int64_t>(ids), args.logprobs_of = at<float>(logprobs_of);
  py::gil_scoped_release release;
  sample(args, threads);
}

std::vector<uint32_t> philox(const std::vector<uint32_t>& counter, const std::vector<uint32_t>& key) {
  if (counter.size() != 4 || key.size() != 2)
    throw std::invalid_argument("philox4x32_10 takes 4 counter words and 2 key words");
  const Words out = philox4x32_10({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {out.w, out.w + 4};
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() =
      "The compiled engines of fastdecode. Use the functions of the package; these take raw addresses and check "
      "nothing.";
  m.def("truncate_cpu", &truncate_cpu);
  m.def("sample_cpu", &sample_cpu);
  m.def("philox4x32_10", &philox);
  m.def("exponential", &exponential);
  m.def("read_once", [](uintptr_t x, int64_t n) { return read_once(at<const float>(x), n); });
  m.def("exp_pass", [](uintptr_t x, int64_t n) { return exp_pass(at<const float>(x), n); });
  m.def("targets", &targets);
  m.def("target", &target);
  m.def("use_target", &use_target);
  m.def("fields", [] { return std::vector<std::string>{FD_CUT_FIELDS}; });
  m.def("compiler", &compiler);
}
