// What operations share: threads, kernels, and memory that they use while they run.
#pragma once

#include <memory>
#include <mutex>

#include "kernels/kernels.h"
#include "runtime/buffer.h"
#include "runtime/thread_pool.h"

namespace ncl {

struct Runtime {
  std::mutex turn;  // held by the operation that runs
  int thread_count = 1;
  const Kernels* kernels;
  std::unique_ptr<ThreadPool> threads;  // made by the first operation
  Buffer rows;                          // activations after norm or gate
  Buffer activations;                   // the same in the kernels' format
  Buffer queries;                       // rotated and scaled
  Buffer parts;                         // of softmaxes: see ops/attention.cpp
  Buffer scratch;                       // a piece for each thread
  // Of a step: the residual stream, what the products of a layer give, rows that become logits.
  Buffer hidden, qkv, heads, gate_up, wanted;

  Runtime();
  ThreadPool& pool();

  // Calls body(item, scratch) for every item in [0, items) on the pool, each with its thread's
  // `scratch_bytes` of memory. Exceptions: see ThreadPool::run.
  template <class Body>
  void run(int items, size_t scratch_bytes, Body&& body) {
    ThreadPool& pool = this->pool();
    const size_t stride = ncl::scratch_bytes<unsigned char>(scratch_bytes);
    auto* memory = static_cast<unsigned char*>(scratch.reserve(stride * pool.threads()));
    pool.run(items, [&](int item, int thread) {
      if (kernels->prepare_thread) prepare_this_thread();
      unsigned char* own = memory + stride * thread;
      body(item, Scratch{own, own + stride});
    });
  }

 private:
  void prepare_this_thread();
};

// The only instance. Operations run one after the other, also when several threads call them.
Runtime& runtime();

void set_threads(int threads);
void use_kernels(const Kernels* kernels);

}  // namespace ncl
