// The only file that knows Python's C API and pybind11: Python numbers to pointers, strides and sizes. Arguments were checked by ops.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "args.h"
#include "calls.h"
#include "cut.h"
#include "dtype.h"
#include "gamma.h"
#include "philox.h"

// What this file is compiled for: the module's name; whether it has the CUDA engine; and whether it has nothing else, because tests
// emulate that engine on the CPU.
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

Logits logits_of(const void* base, int dtype, int64_t rows, int64_t vocab) {
  Logits logits;
  logits.base = base, logits.dtype = dtype, logits.rows = rows, logits.vocab = logits.limit = logits.row_stride = vocab;
  return logits;
}

// ---- arguments: calls.h says which; here they are read from Python tuples

// What a Reader throws; Python sees a TypeError.
struct WrongArguments : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Reader {
 public:
  Reader(PyObject* const* args, Py_ssize_t count) : args_(args), count_(count) {}

  void group(const char* name) {
    end_group();
    PyObject* const tuple = next(name);
    if (!PyTuple_Check(tuple)) throw WrongArguments(std::string("expected a tuple for ") + name);
    name_ = name, at_ = 0, size_ = PyTuple_GET_SIZE(tuple), items_ = &PyTuple_GET_ITEM(tuple, 0);
  }

  template <class T>
  void operator()(const char*, T& number) {
    if (at_ < size_) read(items_[at_], number);
    ++at_;  // end_group() compares it with the size
  }

  template <class T>
  void number(const char* name, T& number) {
    end_group();
    read(next(name), number);
  }

  void end() {
    end_group();
    if (used_ != count_) throw WrongArguments("expected " + std::to_string(used_) + " arguments");
  }

 private:
  PyObject* next(const char* name) {
    if (used_ == count_) throw WrongArguments(std::string("expected an argument for ") + name);
    return args_[used_++];
  }

  void end_group() {
    if (at_ != size_)
      throw WrongArguments("expected " + std::to_string(at_) + " numbers in " + name_ + "; got " +
                           std::to_string(size_));
  }

  // A number that does not fit leaves Python's error behind; the caller looks for it once.
  template <class T>
  static void read(PyObject* object, T& number) {
    if constexpr (std::is_floating_point_v<T>)
      number = T(PyFloat_AsDouble(object));
    else if constexpr (std::is_pointer_v<T>)
      number = reinterpret_cast<T>(uintptr_t(PyLong_AsUnsignedLongLong(object)));
    else
      number = T(PyLong_AsLongLong(object));
  }

  PyObject* const* args_;
  PyObject* const* items_ = nullptr;
  Py_ssize_t count_, used_ = 0, at_ = 0, size_ = 0;
  const char* name_ = "";
};

// The names "group.number", in order.
struct Names {
  std::vector<std::string> names;
  std::string group_name;

  void group(const char* name) { group_name = name; }

  template <class T>
  void operator()(const char* name, const T&) {
    names.push_back(group_name + "." + name);
  }
};

template <class Call>
std::vector<std::string> names_of() {
  Names names;
  Call().visit(names);
  return names.names;
}

void check(int dtype) {
  if (dtype < kFloat32 || dtype > kBFloat16) throw std::invalid_argument("fastdecode._native: unknown dtype code");
}

// A Python function that takes the groups of a Call and where it runs. Not by pybind11, which takes longer to convert 35 numbers
// than the engine takes for a short row.
template <class Call, class Place, void (*run)(Call&, const Place&)>
PyObject* called(PyObject*, PyObject* const* args, Py_ssize_t n) {
  try {
    Call call;
    Place place;
    Reader reader(args, n);
    call.visit(reader), place.visit(reader);
    reader.end();
    if (PyErr_Occurred()) return nullptr;
    py::gil_scoped_release release;
    run(call, place);
  } catch (const WrongArguments& error) {
    return PyErr_Format(PyExc_TypeError, "fastdecode._native: %s", error.what());
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

template <class Call, class Place, void (*run)(Call&, const Place&)>
void bind(py::module_& m, const char* name) {
  static PyMethodDef definition;
  definition = {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(called<Call, Place, run>)), METH_FASTCALL,
                nullptr};
  m.attr(name) = py::reinterpret_steal<py::object>(PyCFunction_New(&definition, nullptr));
}

#if !FD_EMULATED
void truncate_cpu(Truncation& call, const Threads& on) {
  check(call.args.logits.dtype);
  fastdecode::truncate(call.args, on.threads);  // unistd.h has one too
}

void sample_cpu(Sampling& call, const Threads& on) {
  check(call.args.logits.dtype);
  if (!call.args.seed.base) call.args.seed = {&call.seed, 0};
  if (!call.args.step.base) call.args.step = {&call.step, 0};
  sample(call.args, on.threads);
}

void soften_cpu(Softening& call, const Threads& on) {
  check(call.args.logits.dtype);
  soften(call.args, on.threads);
}

void embed_cpu(Embedding& call, const Threads& on) {
  check(call.args.dtype);
  embed(call.args, on.threads);
}

// The v of tokens `ids` [rows, n] for one use of the stream. Soft tokens need a handful of them, not one for each token of the row.
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
struct Where {
  cuda::Where where;

  template <class At>
  void visit(At& at) {
    at.group("where");
    at("device", where.device), at("stream", where.stream), at("ranks", where.ranks);
  }
};

void truncate_cuda(Truncation& call, const Where& on) {
  check(call.args.logits.dtype);
  cuda::truncate(call.args, on.where);
}

void sample_cuda(Sampling& call, const Where& on) {
  check(call.args.logits.dtype);
  cuda::sample(call.args, call.seed, call.step, on.where);
}

void soften_cuda(Softening& call, const Where& on) {
  check(call.args.logits.dtype);
  cuda::soften(call.args, on.where);
}

void embed_cuda(Embedding& call, const Where& on) {
  check(call.args.dtype);
  cuda::embed(call.args, on.where);
}

// For tests: blocks for each row, threads of a block, whether the row stays in shared memory, bytes of it.
std::tuple<int, int, bool, int64_t> cuda_shape(int multiprocessors, int64_t shared_bytes, int most_ranks, int dtype,
                                               int64_t rows, int64_t vocab) {
  check(dtype);
  const cuda::Shape shape =
      cuda::shape_for({multiprocessors, shared_bytes, most_ranks}, logits_of(nullptr, dtype, rows, vocab), 0);
  return {shape.ranks, shape.threads, shape.resident, shape.bytes};
}
#endif

}  // namespace

PYBIND11_MODULE(FD_MODULE, m) {
  m.doc() =
      "The compiled engines of fastdecode. Use the functions of the package; these take raw addresses and check "
      "nothing.";
  m.def("fields", [] { return std::vector<std::string>{FD_CUT_FIELDS}; });
  m.def("arguments", [] {
    return std::map<std::string, std::vector<std::string>>{{"truncate", names_of<Truncation>()},
                                                           {"sample", names_of<Sampling>()},
                                                           {"soften", names_of<Softening>()},
                                                           {"embed", names_of<Embedding>()}};
  });
#if FD_CUDA
  bind<Truncation, Where, truncate_cuda>(m, "truncate_cuda");
  bind<Sampling, Where, sample_cuda>(m, "sample_cuda");
  bind<Softening, Where, soften_cuda>(m, "soften_cuda");
  bind<Embedding, Where, embed_cuda>(m, "embed_cuda");
  m.attr("most_candidates") = cuda::kMostCandidates;
  m.def("cuda_shape", &cuda_shape);
  m.def("cuda_built_for", &cuda::built_for);
  m.def("cuda_devices", &cuda::devices);
#endif
#if !FD_EMULATED
  bind<Truncation, Threads, truncate_cpu>(m, "truncate_cpu");
  bind<Sampling, Threads, sample_cpu>(m, "sample_cpu");
  bind<Softening, Threads, soften_cpu>(m, "soften_cpu");
  bind<Embedding, Threads, embed_cpu>(m, "embed_cpu");
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
