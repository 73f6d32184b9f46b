#include "ops/linear.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <mutex>
#include <new>

#include "kernels/scalar.h"
#include "runtime/thread_pool.h"

namespace ncl {
namespace {

// Multiplications that one thread does sooner than others wake up: a few microseconds' worth.
constexpr int64_t kAloneBelow = 1 << 16;

// What operations share: threads, kernels, and memory that they use while they run.
struct Runtime {
  std::mutex turn;  // held by the operation that runs
  int thread_count = 1;
  std::unique_ptr<ThreadPool> threads;  // made by the first operation
  const Kernels* kernels = generic_kernels();
  std::vector<float> rows;     // activations after norm or gate
  IntegerRows integers;        // the same as integers
  std::vector<float> queries;  // rotated and scaled

  ThreadPool& pool() {
    if (!threads) threads = std::make_unique<ThreadPool>(thread_count);
    return *threads;
  }
};

// Never deleted: a worker may still sleep in it when the process ends.
Runtime* runtime() {
  static Runtime* instance = [] {
    static Runtime* current = new Runtime;
    // Threads do not survive a fork, and the lock may be held: the child starts with a new pool.
    pthread_atfork(nullptr, nullptr, [] {
      const int thread_count = current->thread_count;
      const Kernels* kernels = current->kernels;
      new (current) Runtime;  // over the old one, whose threads are gone
      current->thread_count = thread_count;
      current->kernels = kernels;
    });
    return current;
  }();
  return instance;
}

float* reserve(std::vector<float>& buffer, size_t count) {
  if (buffer.size() < count) buffer.resize(count);
  return buffer.data();
}

// Row tiles [begin, end) of all parts, counted through.
void multiply_tiles(const Linear& op, const Runtime& rt, const float* x, int begin, int end) {
  int first_tile = 0, first_row = 0;
  for (const Matrix& part : op.projection->parts) {
    const int from = std::max(begin - first_tile, 0);
    const int to = std::min(end - first_tile, part.row_tiles());
    if (from < to) {
      const Output out{op.out + first_row, op.projection->rows, op.accumulate};
      if (!is_packed(part.type)) {
        rt.kernels->dense_product(part, from, to, x, op.rows, out);
      } else if (op.projection->limit) {
        rt.kernels->integer_product(part, from, to, rt.integers, out);
      } else {
        rt.kernels->float_product(part, from, to, x, op.rows, out);
      }
    }
    first_tile += part.row_tiles();
    first_row += part.rows;
  }
}

// Rotates the pairs (i, i + dim / 2) of one head by the angles of its position.
void rotate(const float* x, const float* cos, const float* sin, int dim, float scale, float* out) {
  const int half = dim / 2;
  for (int i = 0; i < half; ++i) {
    out[i] = scale * (x[i] * cos[i] - x[i + half] * sin[i]);
    out[i + half] = scale * (x[i + half] * cos[i] + x[i] * sin[i]);
  }
}

void store(void* target, FloatType type, size_t index, float value) {
  if (type == FloatType::kBf16) {
    static_cast<uint16_t*>(target)[index] = float_to_bf16(value);
  } else {
    static_cast<float*>(target)[index] = value;
  }
}

// Rotates the queries of new position `index` into `queries`, and its keys and values into the
// cache.
void place_position(const Attention& op, const Kernels& kernels, int index, float* queries) {
  const int dim = op.dim, position = op.start + index, slot = position % op.capacity;
  const float* qkv = op.qkv + static_cast<size_t>(index) * (op.heads + 2 * op.kv_heads) * dim;
  const float* cos = op.cos + static_cast<size_t>(position) * (dim / 2);
  const float* sin = op.sin + static_cast<size_t>(position) * (dim / 2);
  std::vector<float> normed(dim), rotated(dim);
  const auto with_norm = [&](const float* x, const float* weight) {
    if (!weight) return x;
    kernels.rms_norm(x, weight, op.eps, dim, normed.data());
    return static_cast<const float*>(normed.data());
  };
  for (int head = 0; head < op.heads; ++head, qkv += dim) {
    float* query = queries + (static_cast<size_t>(index) * op.heads + head) * dim;
    rotate(with_norm(qkv, op.query_norm), cos, sin, dim, op.scale, query);
  }
  for (int head = 0; head < op.kv_heads; ++head, qkv += dim) {
    rotate(with_norm(qkv, op.key_norm), cos, sin, dim, 1.0f, rotated.data());
    const size_t block =
        (static_cast<size_t>(head) * op.capacity + slot / kKeyBlock * kKeyBlock) * dim;
    for (int i = 0; i < dim; ++i) {
      store(op.keys, op.cache_type, block + i * kKeyBlock + slot % kKeyBlock, rotated[i]);
    }
  }
  for (int head = 0; head < op.kv_heads; ++head, qkv += dim) {
    const size_t row = (static_cast<size_t>(head) * op.capacity + slot) * dim;
    for (int i = 0; i < dim; ++i) store(op.values, op.cache_type, row + i, qkv[i]);
  }
}

// The queries of one kv head at positions [begin, end) of the new ones.
void attend_positions(const Attention& op, const Kernels& kernels, const float* queries,
                      int kv_head, int begin, int end) {
  const int group = op.heads / op.kv_heads, count = (end - begin) * group;
  std::vector<const float*> query(count);
  std::vector<float*> output(count);
  std::vector<int> first(count), last(count);
  for (int i = 0; i < count; ++i) {
    const int index = begin + i / group;
    const size_t at =
        (static_cast<size_t>(index) * op.heads + kv_head * group + i % group) * op.dim;
    query[i] = queries + at;
    output[i] = op.out + at;
    last[i] = op.start + index;
    first[i] = op.window ? std::max(0, last[i] - op.window + 1) : 0;
  }
  const size_t item = op.cache_type == FloatType::kBf16 ? 2 : 4;
  const size_t offset = static_cast<size_t>(kv_head) * op.capacity * op.dim * item;
  kernels.attend({query.data(), output.data(), first.data(), last.data(), count, op.dim,
                  static_cast<const char*>(op.keys) + offset,
                  static_cast<const char*>(op.values) + offset, op.cache_type, op.capacity});
}

}  // namespace

bool Projection::needs_integers() const {
  return limit != 0 && std::any_of(parts.begin(), parts.end(),
                                   [](const Matrix& part) { return is_packed(part.type); });
}

void linear(const Linear& op) {
  Runtime& rt = *runtime();
  const std::lock_guard lock(rt.turn);
  const Projection& projection = *op.projection;
  const int cols = projection.cols;
  const bool integers = projection.needs_integers();
  const float* x = op.x;
  const bool changed = op.norm_weight || op.gate != Activation::kNone;
  if (changed) x = reserve(rt.rows, static_cast<size_t>(op.rows) * cols);
  if (integers) rt.integers.resize(op.rows, (cols + kColumnBlock - 1) / kColumnBlock);

  if (changed || integers) {
    rt.pool().run(op.rows, [&](int row) {
      float* own = rt.rows.data() + static_cast<size_t>(row) * cols;
      if (op.norm_weight) {
        const float* from = op.x + static_cast<size_t>(row) * cols;
        rt.kernels->rms_norm(from, op.norm_weight, op.eps, cols, own);
      } else if (op.gate == Activation::kSilu) {
        const float* gate = op.x + static_cast<size_t>(row) * 2 * cols;
        rt.kernels->silu_gate(gate, gate + cols, cols, own);
      }
      if (integers) {
        const float* from = x + static_cast<size_t>(row) * cols;
        rt.kernels->quantize_row(from, cols, projection.limit, rt.integers, row);
      }
    });
  }

  int tiles = 0;
  for (const Matrix& part : projection.parts) tiles += part.row_tiles();
  // Some items a thread, so that one that is held up leaves its share to the others; one item
  // where waking threads would take longer than the work.
  const int64_t work = static_cast<int64_t>(op.rows) * projection.rows * cols;
  const int items = work < kAloneBelow ? 1 : 8 * rt.pool().threads();
  const int step = std::max(1, (tiles + items - 1) / items);
  rt.pool().run((tiles + step - 1) / step, [&](int item) {
    multiply_tiles(op, rt, x, item * step, std::min(tiles, (item + 1) * step));
  });
}

void attention(const Attention& op) {
  Runtime& rt = *runtime();
  const std::lock_guard lock(rt.turn);
  float* queries = reserve(rt.queries, static_cast<size_t>(op.count) * op.heads * op.dim);
  rt.pool().run(op.count, [&](int index) { place_position(op, *rt.kernels, index, queries); });
  const int step = std::max(1, 16 / (op.heads / op.kv_heads));  // positions: about 16 queries
  const int steps = (op.count + step - 1) / step;
  rt.pool().run(op.kv_heads * steps, [&](int item) {
    const int begin = item % steps * step;
    attend_positions(op, *rt.kernels, queries, item / steps, begin,
                     std::min(op.count, begin + step));
  });
}

bool round_to_nearest(const Rounding& op) {
  Runtime& rt = *runtime();
  const std::lock_guard lock(rt.turn);
  std::atomic<bool> done{true};
  rt.pool().run((op.rows + kRowTile - 1) / kRowTile, [&](int tile) {
    if (done && !rt.kernels->round_tile(op, tile)) done = false;
  });
  return done;
}

std::vector<double> measure_bandwidth(size_t bytes, int passes) {
  constexpr size_t kChunk = 1 << 20;
  const int chunks = static_cast<int>(std::max<size_t>(1, bytes / kChunk));
  const size_t size = chunks * kChunk;
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  madvise(memory, size, MADV_HUGEPAGE);
#endif
  Runtime& rt = *runtime();
  const std::lock_guard lock(rt.turn);
  char* data = static_cast<char*>(memory);
  // Written first: pages that were never written all map to one page of zeros.
  rt.pool().run(chunks,
                [&](int i) { std::fill_n(data + i * kChunk, kChunk, static_cast<char>(i)); });
  std::vector<double> results;
  std::atomic<uint64_t> sink{0};
  for (int pass = 0; pass < passes; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    rt.pool().run(chunks, [&](int i) { sink ^= rt.kernels->read_all(data + i * kChunk, kChunk); });
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    results.push_back(static_cast<double>(size) / time.count());
  }
  munmap(memory, size);
  return results;
}

void set_threads(int threads) {
  Runtime& rt = *runtime();
  const std::lock_guard lock(rt.turn);
  if (threads != rt.thread_count) rt.threads.reset();
  rt.thread_count = threads;
}

void use_kernels(const Kernels* kernels) {
  Runtime& rt = *runtime();
  const std::lock_guard lock(rt.turn);
  rt.kernels = kernels;
}

}  // namespace ncl
