#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/engine/call.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"

namespace heed::detail {

/// The gradients of attention pair by pair, as the mathematics reads; it defines what the fused
/// engine computes, and runs for any number type. With P_ij = e^(score_ij - log_sum_exp_i), the
/// factor keep_ij of the dropout (0 or 1 / (1 - p)), and dO the gradient of the output O:
///
///   dV_j  += P_ij keep_ij dO_i
///   dP_ij  = keep_ij dO_i . V_j
///   dS_ij  = P_ij (dP_ij - delta_i),  delta_i = sum_j P_ij dP_ij = dO_i . O_i
///
/// and dS goes back through the modifiers, last first, and then through the similarity. A pair that
/// the mask hides is not looked at; neither is a query without keys, whose gradient is 0.
template <class Accumulator, class Call>
class MaterialisedBackward {
  using Score = typename Call::Score;
  using Similarity = typename Score::Similarity;
  using Modifiers = decltype(Score::modifiers);
  static constexpr bool transforms = Transforms<Similarity>;

 public:
  explicit MaterialisedBackward(const Call& call) : problem_(call.problem), call_(call) {}

  void run(Eigen::ThreadPoolInterface* pool) const {
    // Heads may share the gradient of a parameter, which then has one writer.
    constexpr bool shared = Trained<Similarity> || any_trained<Modifiers>;
    parallel_for(shared ? nullptr : pool, problem_.batch * problem_.kv_heads,
                 [this](Index first, Index last) {
                   for (Index item = first; item < last; ++item) {
                     attend_back(item / problem_.kv_heads, item % problem_.kv_heads);
                   }
                 });
  }

 private:
  using Row = std::vector<Accumulator>;
  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
  static Row zeros(Index count) { return Row(at(count), Accumulator(0.0)); }

  /// One key head and the query heads that read it.
  void attend_back(Index b, Index kv) const {
    const Index group = problem_.heads / problem_.kv_heads;
    Row d_key = zeros(problem_.keys * problem_.key_dim),
        d_value = zeros(problem_.keys * problem_.value_dim);
    for (Index h = kv * group; h < (kv + 1) * group; ++h) {
      for (Index i = 0; i < problem_.queries; ++i) query_back(b, h, kv, i, d_key, d_value);
    }
    using KeyNumber = typename decltype(call_.gradients.key)::Scalar;
    using ValueNumber = typename decltype(call_.gradients.value)::Scalar;
    for (Index j = 0; j < problem_.keys; ++j) {
      for (Index c = 0; c < problem_.key_dim; ++c) {
        call_.gradients.key(b, kv, j, c) =
            static_cast<KeyNumber>(d_key[at(j * problem_.key_dim + c)]);
      }
      for (Index c = 0; c < problem_.value_dim; ++c) {
        call_.gradients.value(b, kv, j, c) =
            static_cast<ValueNumber>(d_value[at(j * problem_.value_dim + c)]);
      }
    }
  }

  void query_back(Index b, Index h, Index kv, Index i, Row& d_key, Row& d_value) const {
    using std::exp;
    using Number = typename decltype(call_.gradients.query)::Scalar;
    const auto& similarity = call_.score.similarity;
    const Accumulator zero(0.0), one(1.0), infinity(std::numeric_limits<double>::infinity());
    const auto q = [&](Index c) { return static_cast<Accumulator>(call_.in.query(b, h, i, c)); };
    const auto lse = static_cast<Accumulator>(call_.pass.log_sum_exp(b, h, i));
    if (lse == -infinity) {
      for (Index c = 0; c < problem_.query_dim; ++c) {
        call_.gradients.query(b, h, i, c) = static_cast<Number>(zero);
      }
      return;
    }

    Row query = zeros(problem_.key_dim), d_query = zeros(problem_.key_dim);
    for (Index c = 0; c < problem_.key_dim; ++c) {
      Accumulator feature = zero;
      if constexpr (transforms) {
        for (Index r = 0; r < problem_.query_dim; ++r) {
          feature += q(r) * static_cast<Accumulator>(similarity.transform(r, c));
        }
      } else {
        feature = q(c);
      }
      query[at(c)] = feature * similarity.query_factor;
    }
    const auto d_output = [&](Index c) {
      return static_cast<Accumulator>(call_.pass.grad_output(b, h, i, c));
    };
    Accumulator delta = zero;
    for (Index c = 0; c < problem_.value_dim; ++c) {
      delta += d_output(c) * static_cast<Accumulator>(call_.pass.output(b, h, i, c));
    }

    const auto counter = call_.dropout.row(b, h, i);
    const auto keep_scale = static_cast<Accumulator>(call_.dropout.scale());
    const auto keys = call_.mask.row(b, h, i);
    for (int run = 0; run < keys.count; ++run) {
      for (Index j = keys[run].begin; j < keys[run].end; ++j) {
        if (!keys.exact && !call_.mask.allows(b, h, i, j)) continue;
        const auto key = [&](Index c) {
          return static_cast<Accumulator>(call_.in.key(b, kv, j, c));
        };
        Accumulator sum = zero;
        for (Index c = 0; c < problem_.key_dim; ++c) {
          sum = similarity.step(sum, query[at(c)], key(c), c);
        }
        const auto through_softmax = [&](const Accumulator& s) -> Accumulator {
          // At most 1: log_sum_exp may be rounded to below the score of an only key.
          const Accumulator p = s > lse ? one : Accumulator(exp(Accumulator(s - lse)));
          if (call_.dropout.active() && !call_.dropout.keeps(counter, j)) return -(p * delta);
          const Accumulator keep = call_.dropout.active() ? keep_scale : one;
          const Accumulator weight = p * keep;
          Accumulator dp = zero;
          for (Index c = 0; c < problem_.value_dim; ++c) {
            dp += d_output(c) * static_cast<Accumulator>(call_.in.value(b, kv, j, c));
            d_value[at(j * problem_.value_dim + c)] += weight * d_output(c);
          }
          return p * (keep * dp - delta);
        };
        const Accumulator g =
            through_modifiers<0>(similarity.finish(sum), b, h, i, j, through_softmax);
        // Where the score has no influence, an infinite slope has none.
        if (g == zero) continue;
        through_similarity(sum, g, query, key, d_query, d_key.data() + j * problem_.key_dim);
      }
    }

    for (Accumulator& x : d_query) x = x * similarity.query_factor;
    for (Index r = 0; r < problem_.query_dim; ++r) {
      Accumulator gradient = zero;
      if constexpr (transforms) {
        for (Index c = 0; c < problem_.key_dim; ++c) {
          gradient += d_query[at(c)] * static_cast<Accumulator>(similarity.transform(r, c));
          if constexpr (Trained<Similarity>) add(similarity.gradient(r, c), q(r) * d_query[at(c)]);
        }
      } else {
        gradient = d_query[at(r)];
      }
      call_.gradients.query(b, h, i, r) = static_cast<Number>(gradient);
    }
  }

  /// The gradient by the score that enters modifier m, from the one by the score that leaves the
  /// last, which `rest` gives.
  template <std::size_t m>
  Accumulator through_modifiers(const Accumulator& s, Index b, Index h, Index i, Index j,
                                const auto& rest) const {
    if constexpr (m == std::tuple_size_v<Modifiers>) {
      return rest(s);
    } else {
      const auto& modifier = std::get<m>(call_.score.modifiers);
      if constexpr (requires { modifier.shifts; }) {
        const Accumulator g = through_modifiers<m + 1>(modifier(s, b, h, i, j), b, h, i, j, rest);
        if constexpr (Trained<std::remove_cvref_t<decltype(modifier)>>) {
          if constexpr (requires { modifier.slopes; }) {
            add(modifier.gradient(h), g * Accumulator(static_cast<double>(j - i)));
          } else {
            const auto gradient = broadcast_pairs(problem_, "bias", modifier.gradient);
            add(gradient(b, h, i, j), g);
          }
        }
        return g;
      } else {
        const auto dual = modifier.differentiate(s, b, h, i, j);
        const Accumulator g = through_modifiers<m + 1>(dual.value, b, h, i, j, rest);
        return g == Accumulator(0.0) ? g : Accumulator(g * dual.slopes[0]);
      }
    }
  }

  void through_similarity(const Accumulator& sum, Accumulator g, const Row& query, const auto& key,
                          Row& d_query, Accumulator* d_key) const {
    const auto& similarity = call_.score.similarity;
    if constexpr (Similarity::one_instruction) {
      for (Index c = 0; c < problem_.key_dim; ++c) {
        d_query[at(c)] += g * key(c);
        d_key[c] += g * query[at(c)];
      }
    } else if constexpr (!requires { similarity.flat; }) {
      if constexpr (Trained<Similarity> && requires { similarity.width_slope(sum); }) {
        add(similarity.gradient(0), g * similarity.width_slope(sum));
      }
      g = g * similarity.finish_slope(sum);
      for (Index c = 0; c < problem_.key_dim; ++c) {
        Accumulator parameter(0.0);
        if constexpr (requires { similarity.parameter(c); }) parameter = similarity.parameter(c);
        const auto slopes = similarity.slopes(query[at(c)], key(c), parameter);
        d_query[at(c)] += g * slopes.query;
        d_key[c] += g * slopes.key;
        if constexpr (Trained<Similarity> && requires { similarity.parameter(c); }) {
          add(similarity.gradient(c), g * slopes.parameter);
        }
      }
    }
  }

  template <class Number>
  static void add(Number& gradient, const Accumulator& x) {
    gradient = static_cast<Number>(static_cast<Accumulator>(gradient) + x);
  }

  const Problem& problem_;
  const Call& call_;
};

}  // namespace heed::detail
