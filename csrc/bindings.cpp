// The only file that knows Python's C API and pybind11: Python numbers to pointers, strides and sizes. Arguments were checked by ops.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <new>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <utility>

#include "args.h"
#include "dtype.h"
#include "gamma.h"
#include "philox.h"

// What this file is compiled for: the module's name, whether it has the CUDA engine, and whether that is all it has because it
// is the one that tests emulate on the CPU.
#ifndef FD_MODULE
#define FD_MODULE _native
#endif
#ifndef FD_CUDA
#define FD_CUDA 0
#endif
#ifndef FD_EMULATED
#define FD_EMULATED 0
#endif

#if FD_CUDA
#include "cuda/engine.h"
#endif
#if !FD_EMULATED
#include "cpu/engine.h"
#endif

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

TruncateArgs truncate_args(uintptr_t base, int dtype, int64_t rows, int64_t vocab, int64_t row_stride, int64_t limit,
                           uintptr_t cuts, int64_t plans, int count, uintptr_t out, int64_t out_row_stride,
                           float filter_value) {
  TruncateArgs args;
  args.logits = logits_of(base, dtype, rows, vocab, row_stride, limit);
  args.plan = plan_of(cuts, plans, count);
  args.out = at<void>(out);
  args.out_row_stride = out_row_stride;
  args.filter_value = filter_value;
  return args;
}

// A coordinate is an address and a stride, or a number: then its address is null.
struct Drawn {
  SampleArgs args;
  int64_t seed, step;
};

Drawn sample_args(uintptr_t base, int dtype, int64_t rows, int64_t vocab, int64_t row_stride, int64_t limit,
                  uintptr_t cuts, int64_t plans, int count, int64_t seed, uintptr_t seeds, int64_t seed_stride,
                  int64_t step, uintptr_t steps, int64_t step_stride, uintptr_t streams, int64_t stream_stride,
                  int64_t temperatures, int64_t num_samples, uintptr_t tokens, uintptr_t logprobs, uintptr_t kept,
                  uintptr_t status, uintptr_t raw_logprobs, uintptr_t entropy, uintptr_t kept_mass, uintptr_t max_prob,
                  uintptr_t margin, int64_t top, uintptr_t top_logprobs, uintptr_t top_ids, int64_t ids_per_row,
                  uintptr_t ids, uintptr_t logprobs_of) {
  SampleArgs args;
  args.logits = logits_of(base, dtype, rows, vocab, row_stride, limit);
  args.plan = plan_of(cuts, plans, count, temperatures);
  args.temperatures = temperatures;
  args.seed = {at<const int64_t>(seeds), seed_stride};
  args.step = {at<const int64_t>(steps), step_stride};
  args.stream = {at<const int64_t>(streams), stream_stride};
  args.num_samples = num_samples;
  args.tokens = at<int64_t>(tokens), args.logprobs = at<float>(logprobs);
  args.kept = at<int64_t>(kept), args.status = at<uint8_t>(status);
  args.raw_logprobs = at<float>(raw_logprobs), args.entropy = at<float>(entropy), args.kept_mass = at<float>(kept_mass);
  args.max_prob = at<float>(max_prob), args.margin = at<float>(margin);
  args.top = top, args.top_logprobs = at<float>(top_logprobs), args.top_ids = at<int64_t>(top_ids);
  args.ids_per_row = ids_per_row, args.ids = at<const int64_t>(ids), args.logprobs_of = at<float>(logprobs_of);
  return {args, seed, step};
}

SoftArgs soft_args(uintptr_t base, int dtype, int64_t rows, int64_t vocab, int64_t row_stride, int64_t limit,
                   uintptr_t cuts, int64_t plans, int count, int64_t seed, uintptr_t seeds, int64_t seed_stride,
                   int64_t step, uintptr_t steps, int64_t step_stride, uintptr_t streams, int64_t stream_stride,
                   int noise, double strength, double tau, uintptr_t taus, int64_t tau_stride, uintptr_t soft_rows,
                   bool straight, int64_t width, uintptr_t candidates, int64_t num_samples, uintptr_t tokens,
                   uintptr_t token_logprobs, uintptr_t kept, uintptr_t status, uintptr_t ids, uintptr_t weights,
                   uintptr_t first, uintptr_t log_pi, uintptr_t drawn, uintptr_t density) {
  SoftArgs args;
  args.logits = logits_of(base, dtype, rows, vocab, row_stride, limit);
  args.plan = plan_of(cuts, plans, count);
  args.seed = {at<const int64_t>(seeds), seed_stride};
  args.step = {at<const int64_t>(steps), step_stride};
  args.stream = {at<const int64_t>(streams), stream_stride};
  args.one_seed = seed, args.one_step = step;
  args.noise = noise, args.strength = strength, args.tau = tau;
  args.taus = at<const double>(taus), args.tau_stride = tau_stride;
  args.soft_rows = at<const bool>(soft_rows), args.straight = straight;
  args.width = width, args.candidates = at<const int64_t>(candidates);
  args.num_samples = num_samples, args.tokens = at<const int64_t>(tokens);
  args.token_logprobs = at<const float>(token_logprobs);
  args.kept = at<const int64_t>(kept), args.status = at<const uint8_t>(status);
  args.ids = at<int64_t>(ids), args.weights = at<float>(weights), args.first = at<int64_t>(first);
  args.log_pi = at<float>(log_pi), args.drawn = at<float>(drawn), args.density = at<float>(density);
  return args;
}

EmbedArgs embed_args(uintptr_t table, int dtype, int64_t vocab, int64_t columns, int64_t row_stride, int64_t rows,
                     int64_t width, uintptr_t ids, uintptr_t weights, uintptr_t out) {
  if (dtype < kFloat32 || dtype > kBFloat16) throw std::invalid_argument("fastdecode._native: unknown dtype code");
  return {at<const void>(table),    dtype,        vocab, columns, row_stride, rows, width, at<const int64_t>(ids),
          at<const float>(weights), at<void>(out)};
}

template <class T>
T number_of(PyObject* object) {
  if constexpr (std::is_floating_point_v<T>)
    return T(PyFloat_AsDouble(object));
  else if constexpr (std::is_same_v<T, uintptr_t>)
    return PyLong_AsUnsignedLongLong(object);
  else
    return T(PyLong_AsLongLong(object));
}

// A function whose Python arguments, all of them numbers, are those of `parse` and then those of `run`. Not by pybind11, which
// takes longer to convert 35 numbers than the engine takes for a short row.
template <auto parse, auto run>
struct Numbers;

template <class Parsed, class... Given, class... More, Parsed (*parse)(Given...), void (*run)(const Parsed&, More...)>
struct Numbers<parse, run> {
  static PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t n) {
    constexpr size_t kExpected = sizeof...(Given) + sizeof...(More);
    if (size_t(n) != kExpected)
      return PyErr_Format(PyExc_TypeError, "fastdecode._native: expected %zu numbers; got %zd", kExpected, n);
    return call_with(args, std::index_sequence_for<Given...>(), std::index_sequence_for<More...>());
  }

 private:
  template <size_t... I, size_t... J>
  static PyObject* call_with(PyObject* const* args, std::index_sequence<I...>, std::index_sequence<J...>) {
    const std::tuple<Given...> given{number_of<Given>(args[I])...};
    const std::tuple<More...> more{number_of<More>(args[sizeof...(I) + J])...};
    if (PyErr_Occurred()) return nullptr;
    try {
      const Parsed parsed = parse(std::get<I>(given)...);
      py::gil_scoped_release release;
      run(parsed, std::get<J>(more)...);
    } catch (const std::bad_alloc&) {
      return PyErr_NoMemory();
    } catch (const std::invalid_argument& error) {
      return PyErr_Format(PyExc_ValueError, "%s", error.what());
    } catch (const std::out_of_range& error) {
      return PyErr_Format(PyExc_IndexError, "%s", error.what());
    } catch (const std::exception& error) {
      return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
    }
    Py_RETURN_NONE;
  }
};

template <auto parse, auto run>
void bind(py::module_& m, const char* name) {
  static PyMethodDef definition;
  definition = {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(Numbers<parse, run>::call)), METH_FASTCALL,
                nullptr};
  m.attr(name) = py::reinterpret_steal<py::object>(PyCFunction_New(&definition, nullptr));
}

#if !FD_EMULATED
void sample_cpu(const Drawn& drawn, int threads) {
  SampleArgs args = drawn.args;
  if (!args.seed.base) args.seed = {&drawn.seed, 0};
  if (!args.step.base) args.step = {&drawn.step, 0};
  sample(args, threads);
}

// The v of tokens `ids` [rows, n] for one use of the stream: soft tokens need a handful of them, far from one for each token.
void uniforms(int use, int64_t rows, int64_t n, uintptr_t ids, uintptr_t seeds, int64_t seed_stride, uintptr_t steps,
              int64_t step_stride, uintptr_t streams, int64_t stream_stride, uintptr_t out) {
  for (int64_t r = 0; r < rows; ++r) {
    const uint64_t request = uint64_t(at<const int64_t>(streams)[r * stream_stride]);
    const Coordinates here{uint64_t(at<const int64_t>(seeds)[r * seed_stride]),
                           uint64_t(at<const int64_t>(steps)[r * step_stride]), stream_for(Use(use), 0, request)};
    for (int64_t i = r * n; i < (r + 1) * n; ++i) {
      const int64_t id = at<const int64_t>(ids)[i];
      at<double>(out)[i] = uniform_of(words_of(here, uint32_t(id >> 2)).w[id & 3]);
    }
  }
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

#endif

#if FD_CUDA
cuda::Where where_of(int device, uintptr_t stream, int ranks) { return {device, at<void>(stream), ranks}; }

void truncate_cuda(const TruncateArgs& args, int device, uintptr_t stream, int ranks) {
  cuda::truncate(args, where_of(device, stream, ranks));
}

void sample_cuda(const Drawn& drawn, int device, uintptr_t stream, int ranks) {
  cuda::sample(drawn.args, drawn.seed, drawn.step, where_of(device, stream, ranks));
}

void soften_cuda(const SoftArgs& args, int device, uintptr_t stream, int ranks) {
  cuda::soften(args, where_of(device, stream, ranks));
}

void embed_cuda(const EmbedArgs& args, int device, uintptr_t stream, int ranks) {
  cuda::embed(args, where_of(device, stream, ranks));
}

// For tests: blocks for each row, threads of a block, whether the row stays in shared memory, bytes of it.
std::tuple<int, int, bool, int64_t> cuda_shape(int multiprocessors, int64_t shared_bytes, int most_ranks, int dtype,
                                               int64_t rows, int64_t vocab) {
  const cuda::Shape shape =
      cuda::shape_for({multiprocessors, shared_bytes, most_ranks}, logits_of(0, dtype, rows, vocab, vocab, vocab), 0);
  return {shape.ranks, shape.threads, shape.resident, shape.bytes};
}
#endif

}  // namespace

PYBIND11_MODULE(FD_MODULE, m) {
  m.doc() =
      "The compiled engines of fastdecode. Use the functions of the package; these take raw addresses and check "
      "nothing.";
  m.def("fields", [] { return std::vector<std::string>{FD_CUT_FIELDS}; });
#if FD_CUDA
  bind<truncate_args, truncate_cuda>(m, "truncate_cuda");
  bind<sample_args, sample_cuda>(m, "sample_cuda");
  bind<soft_args, soften_cuda>(m, "soften_cuda");
  bind<embed_args, embed_cuda>(m, "embed_cuda");
  m.attr("most_candidates") = cuda::kMostCandidates;
  m.def("cuda_shape", &cuda_shape);
  m.def("cuda_built_for", &cuda::built_for);
  m.def("cuda_devices", &cuda::devices);
#endif
#if !FD_EMULATED
  bind<truncate_args, fastdecode::truncate>(m, "truncate_cpu");  // unistd.h has one too
  bind<sample_args, sample_cpu>(m, "sample_cpu");
  bind<soft_args, soften>(m, "soften_cpu");
  bind<embed_args, embed>(m, "embed_cpu");
  m.def("philox4x32_10", &philox);
  m.def("exponential", &exponential);
  m.def("uniforms", &uniforms);
  m.def("ln_gamma_quantile", [](double shape, double u) { return ln_gamma_quantile(shape, u); });
  m.def("read_once", [](uintptr_t x, int64_t n) { return read_once(at<const float>(x), n); });
  m.def("exp_pass", [](uintptr_t x, int64_t n) { return exp_pass(at<const float>(x), n); });
  m.def("targets", &targets);
  m.def("target", &target);
  m.def("use_target", &use_target);
  m.def("compiler", &compiler);
#endif
}
