#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>
#include <Eigen/Core>

#include <heed/tensor.hpp>

namespace heed_bench {

using heed::Index;
using heed::Matrix;
using heed::Tensor;
using heed::View;

// ------------------------------------------------------------------------------------ yardsticks

/// Elements in the widest vector.
template <class Scalar>
inline constexpr int lanes = static_cast<int>(Eigen::internal::packet_traits<Scalar>::size);

/// HEED_BENCH_CLOCK=cpu in the environment: timings are processor time of this process, which
/// other programs on a busy machine disturb less.
inline bool processor_time() {
  static const bool asked = [] {
    const char* text = std::getenv("HEED_BENCH_CLOCK");
    return text != nullptr && std::string(text) == "cpu";
  }();
  return asked;
}

struct Stopwatch {
  bool cpu = processor_time();
  std::chrono::steady_clock::time_point wall_start = std::chrono::steady_clock::now();
  std::clock_t cpu_start = std::clock();

  double seconds() const {
    if (cpu) return static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC;
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - wall_start).count();
  }
};

/// Makes the value of a vector unknown to the compiler, without taking it out of its register, as
/// EIGEN_OPTIMIZATION_BARRIER does with clang.
template <class Packet>
EIGEN_ALWAYS_INLINE void hide(Packet& x) {
#if defined(__aarch64__)
  asm volatile("" : "+w"(x));
#elif defined(__AVX512F__)
  asm volatile("" : "+v"(x));
#elif defined(__SSE2__)
  asm volatile("" : "+x"(x));
#else
  asm volatile("" : "+m"(x));
#endif
}

/// Runs 12 independent chains x += factor * x0 of the widest vectors: the latency of a
/// multiply-add (4 or 5 cycles) times two units asks for 8 to 10 chains, and 12 chains with their
/// factors fit in 16 registers. They are variables, not an array, which compilers keep in memory.
/// Each starts from a volatile read of its own, and the barrier makes the factor a new unknown for
/// each, so that no chain can be merged with another or taken out of the loop. Returns the sum of
/// all lanes: started at 0 with factors of 1, each lane counts its own multiply-adds.
template <class Scalar>
EIGEN_DONT_INLINE double fma_chains(Index steps, volatile Scalar& start, volatile Scalar& factor) {
  using Packet = typename Eigen::internal::packet_traits<Scalar>::type;
  const auto broadcast = [](volatile Scalar& from) {
    const Scalar value = from;
    return Eigen::internal::pset1<Packet>(value);
  };
  Packet a = broadcast(factor);
  const Packet b = broadcast(factor);
  Packet x0 = broadcast(start), x1 = broadcast(start), x2 = broadcast(start), x3 = broadcast(start),
         x4 = broadcast(start), x5 = broadcast(start), x6 = broadcast(start), x7 = broadcast(start),
         x8 = broadcast(start), x9 = broadcast(start), x10 = broadcast(start),
         x11 = broadcast(start);
  const auto advance = [&a, &b](Packet& x) {
    hide(a);
    x = Eigen::internal::pmadd(a, b, x);
  };
  for (Index step = 0; step < steps; ++step) {
    advance(x0), advance(x1), advance(x2), advance(x3), advance(x4), advance(x5);
    advance(x6), advance(x7), advance(x8), advance(x9), advance(x10), advance(x11);
  }
  double sum = 0;
  const auto collect = [&sum](const Packet& x) {
    Scalar values[lanes<Scalar>];
    Eigen::internal::pstoreu(values, x);
    for (Scalar value : values) sum += static_cast<double>(value);
  };
  collect(x0), collect(x1), collect(x2), collect(x3), collect(x4), collect(x5);
  collect(x6), collect(x7), collect(x8), collect(x9), collect(x10), collect(x11);
  return sum;
}

/// FLOP/s of one slice (about a millisecond) of nothing but multiply-adds in registers. The lanes'
/// own count of what they did has to agree with the count that the figure is computed from.
template <class Scalar>
double fma_peak() {
  constexpr Index steps = Index{1} << 19;  // below 2^24: a float lane counts exactly
  constexpr double multiply_adds = 12.0 * lanes<Scalar> * static_cast<double>(steps);
  volatile Scalar zero = 0, one = 1;
  const Stopwatch watch;
  const double counted = fma_chains<Scalar>(steps, zero, one);
  const double elapsed = watch.seconds();
  if (!(counted == multiply_adds)) {
    std::fprintf(stderr, "heed_bench: the FMA yardstick ran %.0f multiply-adds instead of %.0f\n",
                 counted, multiply_adds);
    std::exit(1);
  }
  return 2 * multiply_adds / elapsed;
}

/// Cycles a second of this core right now: a chain of exclusive-ors, one cycle each on every
/// processor, unrolled so that the loop's own counter stays beside the chain. It knows nothing of
/// floating point, which makes it a check of fma_peak.
EIGEN_DONT_INLINE inline double clock_rate() {
  constexpr int steps = 1 << 20;
  volatile std::uint64_t seed = 1;
  std::uint64_t x = seed;
  const std::uint64_t k = seed;
  const Stopwatch watch;
#pragma GCC unroll 16
  for (int step = 0; step < steps; ++step) {
    x ^= k;
    asm volatile("" : "+r"(x));
  }
  const double elapsed = watch.seconds();
  benchmark::DoNotOptimize(x);
  return steps / elapsed;
}

/// Reads `bytes` bytes in order and does nothing else with them: the floor of what must stream
/// through its operands once. The tail below 256 bytes is left out.
EIGEN_DONT_INLINE inline void plain_read(const void* data, std::size_t bytes) {
  using Block [[gnu::vector_size(32)]] = std::uint64_t;
  const auto* from = static_cast<const char*>(data);
  Block x[8] = {};
  for (std::size_t i = 0; i < bytes / sizeof(x); ++i) {
    for (Block& sum : x) {
      Block block;
      std::memcpy(&block, from, sizeof block);
      sum ^= block;
      from += sizeof block;
    }
  }
  for (Block& sum : x) benchmark::DoNotOptimize(sum);
}

// ---------------------------------------------------------------------------------------- inputs

/// Uniform with mean 0 and variance 1, the same for a seed on every platform.
template <class Scalar>
void fill(Scalar* data, Index size, unsigned seed) {
  std::mt19937 bits(seed);
  for (Index i = 0; i < size; ++i) {
    data[i] = static_cast<Scalar>((static_cast<float>(bits()) * 0x1p-31F - 1.0F) * 1.7320508F);
  }
}

template <class Scalar, int Rank>
Tensor<Scalar, Rank> random(const std::array<Index, static_cast<std::size_t>(Rank)>& shape,
                            unsigned seed) {
  Tensor<Scalar, Rank> result(shape);
  fill(result.data(), result.size(), seed);
  return result;
}

/// One (rows, cols) matrix of a contiguous tensor of rank 4.
template <class T>
auto head(T& x, Index batch, Index h) {
  using Element = std::remove_pointer_t<decltype(x.data())>;
  using Plain = Matrix<std::remove_const_t<Element>>;
  using Mapped = std::conditional_t<std::is_const_v<Element>, const Plain, Plain>;
  const Index rows = x.dimension(2), cols = x.dimension(3);
  return Eigen::Map<Mapped>(x.data() + (batch * x.dimension(1) + h) * rows * cols, rows, cols);
}

// ---------------------------------------------------------------------------------- verification

/// What a contender has to compute, in double, for some rows of the last two axes: all of them up
/// to 48, else about 40 at an odd distance, so that every place in a tile is met, and the last.
struct Expected {
  std::vector<Index> rows;
  Tensor<double, 4> values;  // (batch, heads, rows.size(), cols)

  Expected(Index batch, Index heads, Index row_count, Index cols) {
    const Index step = row_count <= 48 ? 1 : (row_count / 40) | 1;
    for (Index row = 0; row < row_count - 1; row += step) rows.push_back(row);
    if (row_count > 0) rows.push_back(row_count - 1);
    values.resize(batch, heads, static_cast<Index>(rows.size()), cols);
  }
};

/// The largest error of `actual` (batch, heads, rows, cols) over the largest number that was
/// expected. Throws std::runtime_error where an error is above the bound or any value, sampled or
/// not, is not finite.
template <class Scalar>
double verify(const std::string& who, const View<Scalar, 4>& actual, const Expected& expected,
              double bound) {
  const auto fail = [&](Index b, Index h, Index i, Index j, double found, const char* wanted) {
    char text[240];
    std::snprintf(text, sizeof text, "%s is wrong at (%lld, %lld, %lld, %lld): %.9g instead of %s",
                  who.c_str(), static_cast<long long>(b), static_cast<long long>(h),
                  static_cast<long long>(i), static_cast<long long>(j), found, wanted);
    throw std::runtime_error(text);
  };
  double worst = 0, largest = 0;
  for (Index b = 0; b < actual.shape[0]; ++b) {
    for (Index h = 0; h < actual.shape[1]; ++h) {
      for (Index i = 0; i < actual.shape[2]; ++i) {
        for (Index j = 0; j < actual.shape[3]; ++j) {
          const auto found = static_cast<double>(actual(b, h, i, j));
          if (!std::isfinite(found)) fail(b, h, i, j, found, "a finite number");
        }
      }
      for (std::size_t row = 0; row < expected.rows.size(); ++row) {
        for (Index j = 0; j < actual.shape[3]; ++j) {
          const double wanted = expected.values(b, h, static_cast<Index>(row), j);
          const auto found = static_cast<double>(actual(b, h, expected.rows[row], j));
          const double error = std::abs(found - wanted);
          if (!(error <= bound)) {
            char text[80];
            std::snprintf(text, sizeof text, "%.9g (error %.2g, bound %.2g)", wanted, error, bound);
            fail(b, h, expected.rows[row], j, found, text);
          }
          worst = std::max(worst, error);
          largest = std::max(largest, std::abs(wanted));
        }
      }
    }
  }
  return largest > 0 ? worst / largest : worst;
}

/// One implementation of an operator; empty where there is none.
struct Contender {
  std::function<void()> run;
  double error = 0;  // what verification found: the largest over the largest result

  explicit operator bool() const { return static_cast<bool>(run); }
};

/// Runs once over an output filled with NaN and verifies. `output` returns a View of rank 4 of the
/// result; it is asked again after the run, which may have put the result elsewhere.
template <class Output>
Contender verified(const std::string& who, std::function<void()> run, const Output& output,
                   const Expected& expected, double bound) {
  const auto before = output();
  using Scalar = typename std::remove_const_t<decltype(before)>::Scalar;
  for (Index b = 0; b < before.shape[0]; ++b) {
    for (Index h = 0; h < before.shape[1]; ++h) {
      for (Index i = 0; i < before.shape[2]; ++i) {
        for (Index j = 0; j < before.shape[3]; ++j) {
          before(b, h, i, j) = std::numeric_limits<Scalar>::quiet_NaN();
        }
      }
    }
  }
  run();
  const double error = verify(who, output(), expected, bound);
  return {std::move(run), error};
}

// --------------------------------------------------------------------------------------- harness

/// What a goal is a bound on; each is a ratio of which more is better.
enum class Measure {
  none,
  peak,   // FLOP/s over the FMA peak
  eigen,  // time of the Eigen implementation over ours
  base,   // time of Case::base over ours
};

struct Goal {
  Measure measure = Measure::none;
  double value = 0;
  bool ahead = false;  // also ahead of Eigen and OpenBLAS
};

/// One line of the table.
struct Case {
  double flops = 0;  // of one call
  Contender heed, eigen, openblas;
  std::function<void()> base;  // what Measure::base compares with
  std::string base_name;
  Goal goal;
  double (*peak)() = fma_peak<float>;
  bool threaded = false;       // timed by the wall clock, always
  std::shared_ptr<void> data;  // what the contenders work on
};

/// Registers a benchmark. `make` is called, and thereby verifies, when the benchmark is run; where
/// it throws, nothing is timed and the program's exit code is 1. All contenders, the base and the
/// FMA peak take turns, at least HEED_BENCH_ROUNDS times (default 30), so that noise hits them
/// alike; the best time of each counts, against the best peak.
void add(const std::string& name, std::function<Case(const std::string& name)> make);

/// The parts one after the other, for names.
template <class... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

/// Each file of benchmarks has one, so that any selection of the files links into a program.
struct Suite {
  explicit Suite(void (*add_all)()) { all().push_back(add_all); }

  static std::vector<void (*)()>& all() {
    static std::vector<void (*)()> suites;
    return suites;
  }
};

// ------------------------------------------------------------------------ what several files time

/// softmax(adjust(query key^T * scale)) value as one writes it with Eigen: whole matrices of
/// scores, one head at a time. The scores are kept from call to call.
template <class Scalar>
struct EigenAttention {
  Matrix<Scalar> scores;

  template <class Query, class Key, class Value, class Output, class Adjust>
  void operator()(const Query& query, const Key& key, const Value& value, Output&& output,
                  const Adjust& adjust) {
    scores.noalias() = query * key.transpose();
    scores *= Scalar(1) / std::sqrt(static_cast<Scalar>(query.cols()));
    adjust(scores);
    softmax_times(value, output);
  }

  /// output = softmax(scores) value
  template <class Value, class Output>
  void softmax_times(const Value& value, Output&& output) {
    for (Index i = 0; i < scores.rows(); ++i) {
      auto row = scores.row(i).array();
      row = (row - row.maxCoeff()).exp();
      row /= row.sum();
    }
    output.noalias() = scores * value;
  }
};

/// The definition of attention in double. score(h, i, j, q, k) returns the score of query row i
/// against key row j, -infinity where the pair is masked. Views are (batch, heads, seq, dim).
template <class Scalar, class Score>
Expected reference_attention(const View<Scalar, 4>& query, const View<Scalar, 4>& key,
                             const View<Scalar, 4>& value, const Score& score) {
  Expected expected(query.shape[0], query.shape[1], query.shape[2], value.shape[3]);
  const auto to_double = [](const View<Scalar, 4>& x, Index b, Index h) {
    Matrix<double> result(x.shape[2], x.shape[3]);
    for (Index i = 0; i < result.rows(); ++i) {
      for (Index j = 0; j < result.cols(); ++j) result(i, j) = static_cast<double>(x(b, h, i, j));
    }
    return result;
  };
  for (Index b = 0; b < query.shape[0]; ++b) {
    for (Index h = 0; h < query.shape[1]; ++h) {
      const Index kv_head = h / (query.shape[1] / key.shape[1]);
      const Matrix<double> q = to_double(query, b, h), k = to_double(key, b, kv_head),
                           v = to_double(value, b, kv_head);
      for (std::size_t row = 0; row < expected.rows.size(); ++row) {
        const Index i = expected.rows[row];
        Eigen::RowVectorXd weights(k.rows());
        for (Index j = 0; j < k.rows(); ++j) weights(j) = score(h, i, j, q.row(i), k.row(j));
        weights = (weights.array() - weights.maxCoeff()).exp();
        const Eigen::RowVectorXd output = weights * v / weights.sum();
        for (Index d = 0; d < v.cols(); ++d) {
          expected.values(b, h, static_cast<Index>(row), d) = output(d);
        }
      }
    }
  }
  return expected;
}

/// Bound on the error of an attention output over inputs from `fill`: sums are held in float or
/// double, and the output is rounded once to Scalar.
template <class Scalar>
double attention_bound() {
  using Accumulator = std::conditional_t<std::is_same_v<Scalar, double>, double, float>;
  // (Eigen 3.4 gives an eighth of half's.)
  const double stored = std::is_same_v<Scalar, Eigen::half>
                            ? 0x1p-10
                            : static_cast<double>(std::numeric_limits<Scalar>::epsilon());
  return 100 * static_cast<double>(std::numeric_limits<Accumulator>::epsilon()) + 2 * stored;
}

}  // namespace heed_bench
