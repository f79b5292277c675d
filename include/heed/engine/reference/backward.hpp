#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "heed/core/parallel.hpp"
#include "heed/engine/call.hpp"
#include "heed/policy/contract.hpp"

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
template <class Call>
class ReferenceBackward {
  using Number = typename Call::Number;
  using Score = typename Call::Definition;
  using Similarity = typename Score::Similarity;
  using Modifiers = typename Score::Modifiers;
  static constexpr ScoreTraits traits = score_traits<Similarity>;

 public:
  static constexpr bool possible = true;
  static std::true_type suits(const Call&) { return {}; }

  explicit ReferenceBackward(const Call& call) : problem_(call.problem), call_(call) {}

  void run(Eigen::ThreadPoolInterface* pool) const {
    // Heads may share the gradient of a parameter, which then has one writer.
    constexpr bool shared = trained<Similarity> || Score::trains_modifiers;
    const auto partials = [&](const auto&... modifier) {
      return std::array<Row, std::tuple_size_v<Modifiers>>{partials_of(modifier)...};
    };
    auto sums = std::apply(partials, call_.definition.modifiers);
    parallel_for(shared ? nullptr : pool, problem_.entries() * problem_.kv_heads,
                 [&](Index first, Index last) {
                   for (Index item = first; item < last; ++item) {
                     attend_back(problem_.first_entry() + item / problem_.kv_heads,
                                 item % problem_.kv_heads, sums);
                   }
                 });
    std::size_t m = 0;
    const auto finish = [&](const auto& modifier) {
      if constexpr (trained<std::remove_cvref_t<decltype(modifier)>>) {
        for (std::size_t n = 0; n < sums[m].size(); ++n) {
          modifier.add_partial(static_cast<Index>(n), sums[m][n]);
        }
      }
      ++m;
    };
    std::apply([&](const auto&... modifier) { (finish(modifier), ...); },
               call_.definition.modifiers);
  }

 private:
  using Row = std::vector<Number>;
  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
  static Row zeros(Index count) { return Row(at(count), Number(0.0)); }
  template <class Element>
  static void store(Element& to, const Number& x) {
    to = static_cast<Element>(x);
  }
  using Sums = std::array<Row, std::tuple_size_v<Modifiers>>;

  template <class Modifier>
  static Row partials_of(const Modifier& modifier) {
    if constexpr (trained<Modifier>) {
      return zeros(modifier.partials());
    } else {
      return {};
    }
  }

  /// One key head and the query heads that read it.
  void attend_back(Index b, Index kv, Sums& sums) const {
    const Index group = problem_.heads / problem_.kv_heads;
    Row d_key = zeros(problem_.keys * problem_.key_dim),
        d_value = zeros(problem_.keys * problem_.value_dim);
    for (Index h = kv * group; h < (kv + 1) * group; ++h) {
      for (Index i = 0; i < problem_.queries; ++i) query_back(b, h, kv, i, d_key, d_value, sums);
    }
    for (Index j = 0; j < problem_.keys; ++j) {
      for (Index c = 0; c < problem_.key_dim; ++c) {
        store(call_.output.key(b, kv, j, c), d_key[at(j * problem_.key_dim + c)]);
      }
      for (Index c = 0; c < problem_.value_dim; ++c) {
        store(call_.output.value(b, kv, j, c), d_value[at(j * problem_.value_dim + c)]);
      }
    }
  }

  void query_back(Index b, Index h, Index kv, Index i, Row& d_key, Row& d_value, Sums& sums) const {
    using std::exp;
    const auto& similarity = call_.definition.similarity;
    const Number zero(0.0), one(1.0), infinity(std::numeric_limits<double>::infinity());
    const auto q = [&](Index c) { return static_cast<Number>(call_.query(b, h, i, c)); };
    const auto lse = static_cast<Number>(call_.output.log_sum_exp(b, h, i));
    if (lse == -infinity) {
      for (Index c = 0; c < problem_.query_dim; ++c) {
        store(call_.output.query(b, h, i, c), zero);
      }
      return;
    }

    Row query = zeros(problem_.key_dim), d_query = zeros(problem_.key_dim);
    prepare_query(similarity, problem_, q, query.data());
    const auto d_output = [&](Index c) {
      return static_cast<Number>(call_.output.grad_output(b, h, i, c));
    };
    Number delta = zero;
    for (Index c = 0; c < problem_.value_dim; ++c) {
      delta += d_output(c) * static_cast<Number>(call_.output.output(b, h, i, c));
    }

    const auto counter = call_.dropout.row(b, h, i);
    const auto keep_scale = static_cast<Number>(call_.dropout.scale());
    const auto keys = call_.mask.row(b, h, i);
    // In blocks, whose length bounds the growth of rounding errors.
    constexpr Index block = 128;
    Row part = zeros(problem_.key_dim);
    const auto pair_back = [&](Index j) {
      const auto key_row = call_.keys.run(b, kv, j, 1);
      const auto value_row = call_.values.run(b, kv, j, 1);
      const auto key = [&](Index c) { return key_row.template at<Number>(0, c); };
      Number sum = zero;
      for (Index c = 0; c < problem_.key_dim; ++c) {
        sum = similarity.step(sum, query[at(c)], key(c), c);
      }
      const auto through_softmax = [&](const Number& s) -> Number {
        // At most 1: log_sum_exp may be rounded to below the score of an only key.
        const Number p = s > lse ? one : Number(exp(Number(s - lse)));
        const bool kept = !call_.dropout.active() || call_.dropout.keeps(counter, j);
        const Number keep = !call_.dropout.active() ? one : kept ? keep_scale : zero;
        const Number weight = p * keep;  // where p is NaN, so is a weight that is dropped
        Number dp = zero;
        for (Index c = 0; c < problem_.value_dim; ++c) {
          if (kept) dp += d_output(c) * value_row.template at<Number>(0, c);
          d_value[at(j * problem_.value_dim + c)] += weight * d_output(c);
        }
        return p * (keep * dp - delta);
      };
      const Number g =
          through_modifiers<0>(similarity.finish(sum), b, h, i, j, sums, through_softmax);
      // Where the score has no influence, an infinite slope has none.
      if (g == zero) return;
      through_similarity(sum, g, query, key, part, d_key.data() + j * problem_.key_dim);
    };
    for (Index first = 0; first < problem_.keys; first += block) {
      std::fill(part.begin(), part.end(), zero);
      for_each_visible(call_.mask, keys, b, h, i, first, std::min(first + block, problem_.keys),
                       pair_back);
      for (std::size_t c = 0; c < part.size(); ++c) d_query[c] += part[c];
    }

    for (Number& x : d_query) x = x * query_factor<Number>(similarity);
    for (Index r = 0; r < problem_.query_dim; ++r) {
      Number gradient = zero;
      if constexpr (transforms<Similarity>) {
        for (Index c = 0; c < problem_.key_dim; ++c) {
          gradient += d_query[at(c)] * static_cast<Number>(similarity.transform(r, c));
          if constexpr (trained<Similarity>) {
            add_to(similarity.gradient(r, c), Number(q(r) * d_query[at(c)]));
          }
        }
      } else {
        gradient = d_query[at(r)];
      }
      store(call_.output.query(b, h, i, r), gradient);
    }
  }

  /// The gradient by the score that enters modifier m, from the one by the score that leaves the
  /// last, which `rest` gives.
  template <std::size_t m>
  Number through_modifiers(const Number& s, Index b, Index h, Index i, Index j, Sums& sums,
                           const auto& rest) const {
    if constexpr (m == std::tuple_size_v<Modifiers>) {
      return rest(s);
    } else {
      using Modifier = std::tuple_element_t<m, Modifiers>;
      const auto& modifier = std::get<m>(call_.definition.modifiers);
      const auto next = [&](const Number& changed) {
        const Number g = through_modifiers<m + 1>(changed, b, h, i, j, sums, rest);
        if constexpr (trained<Modifier>) {
          modifier.add_gradient(PairTile<Number>{&g, 1, b, h, i, 1, j, 1}, sums[m].data());
        }
        return g;
      };
      if constexpr (modifier_traits<Modifier>.effect == Effect::shifts) {
        return next(modified<Number>(modifier, s, b, h, i, j));
      } else {
        const auto dual = differentiated<Number>(modifier, s, b, h, i, j);
        const Number g = next(dual.value);
        return g == Number(0.0) ? g : Number(g * dual.slopes[0]);
      }
    }
  }

  void through_similarity(const Number& sum, Number g, const Row& query, const auto& key,
                          Row& d_query, Number* d_key) const {
    const auto& similarity = call_.definition.similarity;
    if constexpr (is_product<Similarity>) {
      for (Index c = 0; c < problem_.key_dim; ++c) {
        d_query[at(c)] += g * key(c);
        d_key[c] += g * query[at(c)];
      }
    } else if constexpr (traits.derivative != Derivative::zero) {
      if constexpr (trained<Similarity> && traits.parameters == Parameters::shared) {
        add_to(similarity.gradient(0), Number(g * similarity.shared_slope(sum)));
      }
      g = g * finish_slope(similarity, sum);
      for (Index c = 0; c < problem_.key_dim; ++c) {
        const auto slopes = term_slopes(similarity, query[at(c)], Number(key(c)),
                                        feature_parameter<Number>(similarity, c), c, 1);
        d_query[at(c)] += g * slopes.query;
        d_key[c] += g * slopes.key;
        if constexpr (trained<Similarity> && traits.parameters == Parameters::per_feature) {
          add_to(similarity.gradient(c), Number(g * slopes.parameter));
        }
      }
    }
  }

  const Problem& problem_;
  const Call& call_;
};

}  // namespace heed::detail
