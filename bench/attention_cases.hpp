#pragma once

#include <optional>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include <heed/attention.hpp>

#include "support.hpp"

namespace heed_bench {

/// Extents of one call of attention; values are as wide as keys.
struct Extents {
  Index heads, kv_heads, queries, keys, dim;

  static Extents square(Index heads, Index seq, Index dim) { return {heads, heads, seq, seq, dim}; }

  /// Flops of the two products over every pair.
  double flops() const { return 4.0 * static_cast<double>(heads * queries * keys * dim); }
  /// Elements of keys and values.
  Index kv_size() const { return 2 * kv_heads * keys * dim; }
};

template <class Scalar>
struct AttentionData {
  Tensor<Scalar, 4> query, key, value, output;  // (1, heads, seq, dim)
  EigenAttention<Scalar> eigen;
  std::optional<Eigen::ThreadPool> pool;

  explicit AttentionData(const Extents& e)
      : query(random<Scalar, 4>({1, e.heads, e.queries, e.dim}, 1)),
        key(random<Scalar, 4>({1, e.kv_heads, e.keys, e.dim}, 2)),
        value(random<Scalar, 4>({1, e.kv_heads, e.keys, e.dim}, 3)),
        output(1, e.heads, e.queries, e.dim) {}
};

template <class Scalar>
Expected reference(AttentionData<Scalar>& x, const auto& score) {
  return reference_attention<Scalar>(heed::view(x.query), heed::view(x.key), heed::view(x.value),
                                     score);
}

/// Query times key over sqrt(dim), in double.
inline double scaled_dot(const auto& q, const auto& k) {
  return q.dot(k) / std::sqrt(static_cast<double>(k.size()));
}
inline constexpr auto plain_score = [](Index, Index, Index, const auto& q, const auto& k) {
  return scaled_dot(q, k);
};

/// attention_into on the data, verified against the expected output.
template <class Scalar, class Score, class Mask>
Contender heed_attention(const std::string& name, std::shared_ptr<AttentionData<Scalar>> x,
                         const Expected& expected, const Score& score, const Mask& mask,
                         const heed::AttentionOptions& options = {}) {
  return verified(
      name + ": heed",
      [x = x.get(), score, mask, options] {
        heed::attention_into(x->output, x->query, x->key, x->value, score, mask, options);
      },
      [x = x.get()] { return heed::view(x->output); }, expected, attention_bound<Scalar>());
}

/// Eigen's matrices, a head at a time. adjust(scores, key) does what the score, its modifiers and
/// the mask are beyond the scaled dot product.
template <class Scalar, class Adjust>
Contender eigen_attention(const std::string& name, std::shared_ptr<AttentionData<Scalar>> x,
                          const Expected& expected, const Adjust& adjust) {
  return verified(
      name + ": Eigen",
      [x = x.get(), adjust] {
        const Index heads = x->query.dimension(1), group = heads / x->key.dimension(1);
        for (Index h = 0; h < heads; ++h) {
          const auto key = head(x->key, 0, h / group);
          x->eigen(head(x->query, 0, h), key, head(x->value, 0, h / group), head(x->output, 0, h),
                   [&](Matrix<Scalar>& scores) { adjust(scores, key); });
        }
      },
      [x = x.get()] { return heed::view(x->output); }, expected, attention_bound<Scalar>());
}

inline constexpr auto no_adjustment = [](const auto&, const auto&) {};

/// Plain attention, without a contender but ourselves.
template <class Scalar>
Contender plain_attention(const std::string& name, const Extents& e) {
  auto x = std::make_shared<AttentionData<Scalar>>(e);
  Contender result = heed_attention(name, x, reference(*x, plain_score), heed::scaled_dot_product(),
                                    heed::no_mask());
  result.run = [x, run = std::move(result.run)] { run(); };
  return result;
}

inline Goal of_peak(double value) { return {Measure::peak, value}; }
inline Goal of_base(double value) { return {Measure::base, value}; }

/// One benchmark beside Eigen. expected_score is what score and mask mean in double, adjust what
/// they mean for Eigen's matrix of scores.
template <class Scalar, class Score, class Mask, class Reference, class Adjust>
Case beside_eigen(const std::string& name, const Extents& e, Goal goal, const Score& score,
                  const Mask& mask, const Reference& expected_score, const Adjust& adjust) {
  auto x = std::make_shared<AttentionData<Scalar>>(e);
  const Expected expected = reference(*x, expected_score);
  Case c;
  c.data = x;
  c.flops = e.flops();
  c.goal = goal;
  if constexpr (std::is_same_v<Scalar, double>) c.peak = fma_peak<double>;
  c.heed = heed_attention(name, x, expected, score, mask);
  c.eigen = eigen_attention(name, x, expected, adjust);
  return c;
}

/// The same call with two threads, beside one.
inline Case two_threads(const std::string& name, const Extents& e) {
  auto x = std::make_shared<AttentionData<float>>(e);
  x->pool.emplace(2);
  const Expected expected = reference(*x, plain_score);
  const auto score = heed::scaled_dot_product();
  Case c;
  c.data = x;
  c.flops = e.flops();
  c.heed = heed_attention(name, x, expected, score, heed::no_mask(), {.pool = &*x->pool});
  c.base = heed_attention(name, x, expected, score, heed::no_mask()).run;
  c.base_name = "1 thread";
  c.goal = of_base(1.9);
  c.threaded = true;
  return c;
}

}  // namespace heed_bench
