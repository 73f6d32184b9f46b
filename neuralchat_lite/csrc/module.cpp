// The Python bindings of the core. kernels/native.py checks the pointers and shapes they get.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <string>
#include <tuple>

#include "interpreter_lock.h"
#include "ops/attention.h"
#include "ops/bandwidth.h"
#include "ops/handover.h"
#include "ops/linear.h"
#include "ops/peak.h"
#include "ops/round_to_nearest.h"
#include "ops/runtime.h"
#include "ops/step.h"
#include "ops/test_hooks.h"
#include "runtime/cpu.h"
#include "runtime/freed_memory.h"

namespace nb = nanobind;

namespace {

using Address = uintptr_t;  // of memory that the caller keeps alive; 0: none

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

const std::map<std::string, ncl::WeightType> kWeightTypes = {
    {"int4", ncl::WeightType::kInt4}, {"int8", ncl::WeightType::kInt8},
    {"fp32", ncl::WeightType::kFp32}, {"bf16", ncl::WeightType::kBf16},
    {"fp16", ncl::WeightType::kFp16},
};
const std::map<std::string, ncl::FloatType> kFloatTypes = {
    {"fp32", ncl::FloatType::kFp32},
    {"bf16", ncl::FloatType::kBf16},
    {"fp16", ncl::FloatType::kFp16},
};

const std::map<std::string, ncl::Scheme> kSchemes = {
    {"sym", ncl::Scheme::kSym},
    {"asym", ncl::Scheme::kAsym},
    {"affine", ncl::Scheme::kAffine},
    {"affine8", ncl::Scheme::kAffine8},
};

const std::map<std::string, ncl::ComputeType> kComputeTypes = {
    {"bf16", ncl::ComputeType::kBf16},
    {"int8", ncl::ComputeType::kInt8},
    {"fp32", ncl::ComputeType::kFp32},
};

const std::map<std::string, ncl::Activation> kActivations = {
    {"", ncl::Activation::kNone},
    {"silu", ncl::Activation::kSilu},
};

void add_matrix(ncl::Projection& projection, const std::string& type, int rows, int cols,
                Address data, Address scales, const std::string& scale_type, Address zeros,
                Address minima, bool byte_minima, int blocks_per_group, Address bias) {
  projection.parts.push_back({kWeightTypes.at(type), rows, cols, pointer<const uint8_t>(data),
                              pointer<const void>(scales), kFloatTypes.at(scale_type),
                              pointer<const int8_t>(zeros), pointer<const void>(minima),
                              blocks_per_group, pointer<const float>(bias), byte_minima});
  projection.rows += rows;
  projection.cols = cols;
}

void linear(const ncl::Projection& projection, Address x, int rows, Address norm_weight, float eps,
            const std::string& gate, bool accumulate, Address out) {
  ncl::Runtime& runtime = ncl::runtime();
  const std::lock_guard lock(runtime.turn);
  ncl::linear(runtime,
              {&projection, pointer<const float>(x), rows, pointer<const float>(norm_weight), eps,
               kActivations.at(gate), accumulate, pointer<float>(out)});
}

void make_shape(ncl::AttentionShape* self, int heads, int kv_heads, int dim, int window,
                float scale, const std::string& format, Address query_norm, Address key_norm,
                float eps, int page_layer) {
  new (self) ncl::AttentionShape{heads,
                                 kv_heads,
                                 dim,
                                 window,
                                 scale,
                                 &ncl::kv_format(format),
                                 pointer<const float>(query_norm),
                                 pointer<const float>(key_norm),
                                 eps,
                                 page_layer};
}

// (tokens, first position, table of page addresses) of a sequence.
using Span = std::tuple<int, int, Address>;

void attention(const ncl::AttentionShape& shape, Address qkv, const std::vector<Span>& spans,
               Address cos, Address sin, Address out) {
  std::vector<ncl::Span> all;
  for (const auto& [count, start, table] : spans) {
    all.push_back({count, start, pointer<uint8_t* const>(table)});
  }
  ncl::Runtime& runtime = ncl::runtime();
  const std::lock_guard lock(runtime.turn);
  ncl::attention(runtime, {&shape,
                           all.data(),
                           static_cast<int>(all.size()),
                           {pointer<const float>(cos), pointer<const float>(sin)},
                           pointer<const float>(qkv),
                           pointer<float>(out)});
}

ncl::Norm norm(Address weight, float eps) { return {pointer<const float>(weight), eps}; }

// embedding: a single matrix
void make_program(ncl::Program* self, const ncl::Projection& embedding, Address norm_weight,
                  float eps, const ncl::Projection& head) {
  new (self) ncl::Program{embedding.parts.at(0), {}, norm(norm_weight, eps), head};
}

void add_layer(ncl::Program& program, Address attention_norm, float attention_eps,
               const ncl::Projection& qkv, const ncl::AttentionShape& shape, int table,
               const ncl::Projection& output, Address mlp_norm, float mlp_eps,
               const ncl::Projection& gate_up, const std::string& activation,
               const ncl::Projection& down) {
  program.layers.push_back({norm(attention_norm, attention_eps), qkv, shape, table, output,
                            norm(mlp_norm, mlp_eps), gate_up, kActivations.at(activation), down});
}

// (tokens, first position, a table of page addresses for each kind of layer) of a sequence.
using Tables = std::tuple<int, int, std::vector<Address>>;

void step(const ncl::Program& program, Address ids, int rows, const std::vector<Tables>& sequences,
          Address cos, Address sin, Address wanted, int wanted_count, bool states, Address out,
          Address seconds) {
  std::vector<ncl::Sequence> all;
  for (const auto& [count, start, tables] : sequences) {
    all.push_back({count, start, {}});
    for (Address table : tables) all.back().tables.push_back(pointer<uint8_t* const>(table));
  }
  ncl::step({&program,
             pointer<const int64_t>(ids),
             rows,
             &all,
             {pointer<const float>(cos), pointer<const float>(sin)},
             pointer<const int64_t>(wanted),
             wanted_count,
             states,
             pointer<float>(out),
             pointer<ncl::Seconds>(seconds)});
}

bool round_to_nearest(Address weights, const std::string& weight_type, int rows, int cols,
                      int group_size, const std::string& type, float lowest, float highest,
                      float steps, int symmetric_zero, const std::string& scale_type,
                      const std::string& scheme, Address codes, Address scales, Address beside,
                      bool search) {
  return ncl::round_to_nearest({pointer<const void>(weights), kFloatTypes.at(weight_type), rows,
                                cols, group_size, kWeightTypes.at(type), lowest, highest, steps,
                                symmetric_zero, kFloatTypes.at(scale_type), kSchemes.at(scheme),
                                pointer<uint8_t>(codes), pointer<void>(scales),
                                pointer<void>(beside), search});
}

// (name, why it cannot run here or ""), best first.
std::vector<std::tuple<std::string, std::string>> instruction_sets() {
  std::vector<std::tuple<std::string, std::string>> names;
  for (const auto& set : ncl::instruction_sets()) names.emplace_back(set.name, ncl::why_not(set));
  return names;
}

void use_instruction_set(const std::string& name) {
  for (const auto& set : ncl::instruction_sets()) {
    if (set.name == name && ncl::why_not(set).empty()) return ncl::use_kernels(set.kernels);
  }
  throw nb::value_error(("instruction set cannot run here: " + name).c_str());
}

// (set, name) of the instruction that multiplies, with the kernels in use.
std::tuple<std::string, std::string> instruction(const std::string& weights,
                                                 const std::string& compute) {
  const auto& found = ncl::instruction(kWeightTypes.at(weights), kComputeTypes.at(compute));
  return {found.set, found.name};
}

double measure_peak(const std::string& weights, const std::string& compute, double seconds) {
  return ncl::measure_peak(ncl::instruction(kWeightTypes.at(weights), kComputeTypes.at(compute)),
                           seconds);
}

void run_failing_loop(int items, bool on_worker, const std::string& kind, Address begun) {
  ncl::run_failing_loop(items, on_worker, kind, pointer<int64_t>(begun));
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The C++ core. Use it through neuralchat_lite.kernels.native.";
  const auto no_gil = nb::call_guard<ncl::WithoutInterpreterLock>();
  nb::class_<ncl::Projection>(m, "Projection")
      .def("__init__",
           [](ncl::Projection* self, const std::string& compute) {
             new (self) ncl::Projection{kComputeTypes.at(compute), {}, 0, 0};
           })
      .def("add", &add_matrix);
  m.def("linear", &linear, no_gil);
  nb::class_<ncl::AttentionShape>(m, "AttentionShape").def("__init__", &make_shape);
  m.def("attention", &attention, no_gil);
  nb::class_<ncl::Program>(m, "Program")
      .def("__init__", &make_program)
      .def("add_layer", &add_layer);
  m.def("step", &step, no_gil);
  m.def("round_to_nearest", &round_to_nearest, no_gil);
  m.def("measure_bandwidth", &ncl::measure_bandwidth, no_gil);
  m.def("measure_handover", &ncl::measure_handover, no_gil);
  m.def("instruction", &instruction, no_gil);
  m.def("measure_peak", &measure_peak, no_gil);
  m.def("set_threads", &ncl::set_threads, no_gil);
  m.def("return_freed_memory", &ncl::return_freed_memory, no_gil);
  m.def("cpu_features", &ncl::cpu_features);
  m.def("instruction_sets", &instruction_sets);
  m.def("use_instruction_set", &use_instruction_set);
  m.def("leave", &ncl::leave);
  m.def("hold_if_leaving", &ncl::hold_if_leaving);
  m.def("held_threads", &ncl::held_threads);
  m.def("run_failing_loop", &run_failing_loop, no_gil, "For tests: see csrc/ops/test_hooks.h.");
  m.def("count_preparations", &ncl::count_preparations, no_gil,
        "For tests: see csrc/ops/test_hooks.h.");
  m.def("use_idle_kernels", &ncl::use_idle_kernels, no_gil,
        "For tests and profiles: see csrc/ops/test_hooks.h.");
#ifdef NCL_SANITIZE
  m.def("misbehave", &ncl::misbehave, no_gil, "For tests: see csrc/ops/test_hooks.h.");
#endif
}
