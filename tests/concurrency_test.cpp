#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/matmul.hpp"
#include "heed/multi_head_attention.hpp"
#include "heed/ragged.hpp"
#include "heed/rotary.hpp"
#include "heed/softmax.hpp"
#include "heed/transformer_block.hpp"
#include "support.hpp"

/// Many threads, one or several pools, inputs that all of them read. Each result is compared bit
/// for bit with that of one thread; a race between calls is for the thread sanitizer to see.
namespace heed::test {
namespace {

template <class... T>
std::vector<double> numbers_of(const T&... tensors) {
  std::vector<double> result;
  const auto append = [&](const Reference& x) {
    result.insert(result.end(), x.data(), x.data() + x.size());
  };
  (append(reference(tensors)), ...);
  return result;
}

/// What a model's server shares between its threads: all of it is const, and every function here
/// may be called by anyone at any time.
struct Shared {
  static constexpr Index batch = 2, seq = 37, dim = 16;
  const Tensor<float, 4> q = make<float, 4>(random({batch, 4, seq, 8}, 1)),
                         k = make<float, 4>(random({batch, 2, seq, 8}, 2)),
                         v = make<float, 4>(random({batch, 2, seq, 8}, 3));
  const Tensor<float, 4> one_query = make<float, 4>(random({batch, 4, 1, 8}, 4));
  const Tensor<float, 3> x = make<float, 3>(random({batch, 1, seq, dim}, 5));
  const Tensor<float, 3> tokens = make<float, 3>(random({1, 1, batch* seq, 8}, 6));
  const Matrix<float> packed = make<float, 2>(random({1, 1, batch* seq, 8}, 7));
  const std::vector<Index> offsets{0, 5, 5, 41, batch* seq};
  const MultiHeadAttention<float> module{{.embed_dim = dim, .num_heads = 4, .num_kv_heads = 2}, 1};
  const TransformerBlock<float> block{
      {.attention = {.embed_dim = dim, .num_heads = 4}, .mlp = {.dim = dim}}, 1};
  KeyValueCache<float> cache{
      {.batch = batch, .kv_heads = 2, .key_dim = 8, .value_dim = 8, .capacity = seq}};

  Shared() { cache.append(k, v); }

  using Call = std::function<std::vector<double>(const AttentionOptions&)>;
  struct Named {
    std::string name;
    Call call;
  };
  std::vector<Named> calls() const {
    const auto mask = causal() && valid_lens({30, 20});
    return {
        {"attention",
         [=, this](const AttentionOptions& o) {
           return numbers_of(attention(q, k, v, scaled_dot_product() | softcap(5), mask, o));
         }},
        {"decoding",
         [this](const AttentionOptions& o) {
           return numbers_of(attention(one_query, k, v, scaled_dot_product(), no_mask(), o));
         }},
        {"weights",
         [=, this](const AttentionOptions& o) {
           const auto both = attention_with_weights(q, k, v, scaled_dot_product(), mask, o);
           return numbers_of(both.output, both.weights);
         }},
        {"backward",
         [=, this](const AttentionOptions& o) {
           const auto pass = attention_forward(q, k, v, scaled_dot_product(), mask, o);
           const auto g = attention_backward(q, k, v, pass, q, scaled_dot_product(), mask, o);
           return numbers_of(g.query, g.key, g.value);
         }},
        {"a cache",
         [this](const AttentionOptions& o) {
           return numbers_of(attention(one_query, cache, scaled_dot_product(), no_mask(), o));
         }},
        {"ragged",
         [this](const AttentionOptions& o) {
           const auto all = ragged(packed, offsets);
           return numbers_of(attention(all, all, all, scaled_dot_product(), causal(), o));
         }},
        {"softmax",
         [=, this](const AttentionOptions&) {
           return numbers_of(softmax(q), masked_softmax(x, causal()));
         }},
        {"a product",
         [this](const AttentionOptions& o) {
           Tensor<float, 4> product(batch, 4, seq, seq);
           batched_matmul_into(product, q, transposed(q), o.pool);
           return numbers_of(product);
         }},
        {"a module",
         [this](const AttentionOptions& o) {
           const auto pass = module.forward(x, x, x, causal(), o);
           const auto g = module.backward(pass, x);
           return numbers_of(pass.output, g.query, g.parameters.query_projection.weight);
         }},
        {"a block",
         [this](const AttentionOptions& o) { return numbers_of(block(x, causal(), o)); }},
    };
  }
};

/// What each call gives on one thread.
std::vector<std::vector<double>> alone(const Shared& shared) {
  std::vector<std::vector<double>> results;
  for (const auto& [name, call] : shared.calls()) results.push_back(call({}));
  return results;
}

/// Every call, in an order that begins elsewhere for each caller; which of them gave other bits.
std::string differing(const Shared& shared, const std::vector<std::vector<double>>& expected,
                      Eigen::ThreadPoolInterface* pool, std::size_t first) {
  std::string wrong;
  const auto calls = shared.calls();
  for (std::size_t n = 0; n < calls.size(); ++n) {
    const std::size_t at = (first + n) % calls.size();
    if (calls[at].call({.pool = pool}) != expected[at]) wrong += calls[at].name + ", ";
  }
  return wrong;
}

/// Runs f(0) .. f(count - 1), each on a thread of its own, and joins them.
template <class F>
void on_threads(std::size_t count, const F& f) {
  std::vector<std::thread> threads;
  for (std::size_t n = 0; n < count; ++n) threads.emplace_back([&f, n] { f(n); });
  for (std::thread& thread : threads) thread.join();
}

/// A counter that a thread waits for.
class Countdown {
 public:
  explicit Countdown(int count) : left_(count) {}
  void step() {
    if (--left_ == 0) left_.notify_all();
  }
  void wait() const {
    for (int left; (left = left_) > 0;) left_.wait(left);
  }

 private:
  std::atomic<int> left_;
};

TEST(Concurrency, ManyCallersOfOnePool) {
  const Shared shared;
  const auto expected = alone(shared);
  for (const int threads : {1, 2, 8}) {
    Eigen::ThreadPool pool(threads);
    std::array<std::string, 4> wrong;
    on_threads(wrong.size(),
               [&](std::size_t n) { wrong[n] = differing(shared, expected, &pool, 3 * n); });
    for (const auto& names : wrong) EXPECT_EQ(names, "") << "pool of " << threads;
  }
}

TEST(Concurrency, CallersWithPoolsOfTheirOwnAndWithNone) {
  const Shared shared;
  const auto expected = alone(shared);
  Eigen::ThreadPool one(1), two(2), eight(8);
  const std::array<Eigen::ThreadPoolInterface*, 5> pools{&one, &two, &eight, &two, nullptr};
  std::array<std::string, 5> wrong;
  on_threads(wrong.size(),
             [&](std::size_t n) { wrong[n] = differing(shared, expected, pools[n], 2 * n); });
  for (const auto& names : wrong) EXPECT_EQ(names, "");
}

// More tasks than the pool has threads, each of which calls with the pool it runs on: all threads
// are taken, and nobody but the caller can do the work.
TEST(Concurrency, FromTasksOfTheSamePool) {
  const Shared shared;
  const auto expected = alone(shared);
  for (const int threads : {1, 2, 8}) {
    Eigen::ThreadPool pool(threads);
    std::vector<std::string> wrong(static_cast<std::size_t>(threads + 3));
    Countdown tasks(threads + 3);
    for (std::size_t n = 0; n < wrong.size(); ++n) {
      pool.Schedule([&, n] {
        wrong[n] = differing(shared, expected, &pool, n);
        tasks.step();
      });
    }
    tasks.wait();
    for (const auto& names : wrong) EXPECT_EQ(names, "") << "pool of " << threads;
  }
}

// A task of one pool calls with another, whose lambda calls with the first.
TEST(Concurrency, PoolsWithinPools) {
  const Shared shared;
  const auto score_of = [&](Eigen::ThreadPoolInterface* pool) {
    return scaled_dot_product() |
           score_mod([&shared, pool](auto s, Index b, Index, Index i, Index) {
             if (i > 0 || b > 0) return s;
             const auto inner = attention(shared.one_query, shared.k, shared.v,
                                          scaled_dot_product(), no_mask(), {.pool = pool});
             return s + static_cast<float>(inner(0, 0, 0, 0));
           });
  };
  const auto expected = numbers_of(attention(shared.q, shared.k, shared.v, score_of(nullptr)));
  for (const int threads : {1, 2, 8}) {
    Eigen::ThreadPool outer(threads), middle(2);
    for (Eigen::ThreadPool* inner : {&outer, &middle}) {
      std::vector<double> result;
      Countdown task(1);
      outer.Schedule([&] {
        result = numbers_of(
            attention(shared.q, shared.k, shared.v, score_of(inner), no_mask(), {.pool = &middle}));
        task.step();
      });
      task.wait();
      EXPECT_EQ(result, expected) << "pool of " << threads;
    }
  }
}

// A pool that ends right after a call may have tasks left that nobody needed; one that begins may
// lie where the last one did.
TEST(Concurrency, PoolsThatComeAndGo) {
  const Shared shared;
  const auto expected = alone(shared);
  on_threads(2, [&](std::size_t n) {
    for (std::size_t repeat = 0; repeat < 20; ++repeat) {
      const auto pool = std::make_unique<Eigen::ThreadPool>(1 + static_cast<int>(repeat % 3));
      const std::size_t at = (repeat + n) % expected.size();
      EXPECT_EQ(shared.calls()[at].call({.pool = pool.get()}), expected[at]);
    }
  });
}

// What is refused is refused to every caller, with its own message, and hurts no other call.
TEST(Concurrency, RefusalsBesideCallsThatFit) {
  const Shared shared;
  const auto expected = alone(shared);
  Eigen::ThreadPool pool(2);
  on_threads(4, [&](std::size_t n) {
    if (n % 2 == 0) {
      EXPECT_EQ(differing(shared, expected, &pool, n), "");
      return;
    }
    for (int repeat = 0; repeat < 20; ++repeat) {
      EXPECT_TRUE(refuses(
          [&] {
            attention(shared.q, shared.k, shared.v, scaled_dot_product(), valid_lens({1, 2, 3}),
                      {.pool = &pool});
          },
          {"heed::attention"}));
    }
  });
}

}  // namespace
}  // namespace heed::test
