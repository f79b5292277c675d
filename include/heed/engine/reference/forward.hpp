#pragma once

#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/engine/call.hpp"
#include "heed/policy/problem.hpp"

namespace heed::detail {

/// Attention row by row, as the definition reads: the scores of a query, modified and masked, their
/// softmax, dropout, and the mean of the values under it. It defines the semantics, gives the
/// weights, and runs for any number type that has +, -, *, /, comparisons and, found by argument
/// lookup or in std, what its score uses of exp, log, tanh, sqrt.
///
/// `weights` (batch, heads, queries, keys) and `log_sum_exp` may be views of nothing.
template <class Accumulator, class In, class Score, class BoundMask, class Out, class Weight,
          class DropoutPolicy>
void materialised(const Problem& problem, const In& in, const Score& score, const BoundMask& mask,
                  const DropoutPolicy& dropout, Eigen::ThreadPoolInterface* pool,
                  const View<Out, 4>& out, const View<Weight, 4>& weights,
                  const View<Accumulator, 3>& log_sum_exp) {
  using std::exp, std::log;
  const auto& similarity = score.similarity;
  const Accumulator zero(0.0), infinity(std::numeric_limits<double>::infinity());

  const auto query_features = [&](Index b, Index h, Index i, std::vector<Accumulator>& features) {
    const auto q = [&](Index c) { return static_cast<Accumulator>(in.query(b, h, i, c)); };
    for (Index c = 0; c < problem.key_dim; ++c) {
      Accumulator feature = zero;
      if constexpr (requires { similarity.transform; }) {
        for (Index r = 0; r < problem.query_dim; ++r) {
          feature += q(r) * static_cast<Accumulator>(similarity.transform(r, c));
        }
      } else {
        feature = q(c);
      }
      features[static_cast<std::size_t>(c)] = feature * similarity.query_factor;
    }
  };

  parallel_for(pool, problem.batch * problem.heads * problem.queries, [&](Index first, Index last) {
    std::vector<Accumulator> query(static_cast<std::size_t>(problem.key_dim), zero);
    std::vector<Accumulator> row(static_cast<std::size_t>(problem.keys), zero);
    std::vector<Accumulator> sums(static_cast<std::size_t>(problem.value_dim), zero);
    for (Index item = first; item < last; ++item) {
      const Index i = item % problem.queries;
      const Index h = item / problem.queries % problem.heads;
      const Index b = item / problem.queries / problem.heads;
      const Index kv = h / (problem.heads / problem.kv_heads);
      query_features(b, h, i, query);

      const auto keys = mask.row(b, h, i);
      const auto for_each_key = [&](const auto& body) {
        for (int k = 0; k < keys.count; ++k) {
          for (Index j = keys[k].begin; j < keys[k].end; ++j) {
            if (keys.exact || mask.allows(b, h, i, j)) body(j, row[static_cast<std::size_t>(j)]);
          }
        }
      };

      Accumulator largest = -infinity;
      for_each_key([&](Index j, Accumulator& entry) {
        Accumulator sum = zero;
        for (Index c = 0; c < problem.key_dim; ++c) {
          sum = similarity.step(sum, query[static_cast<std::size_t>(c)],
                                static_cast<Accumulator>(in.key(b, kv, j, c)), c);
        }
        entry = similarity.finish(sum);
        std::apply([&](const auto&... modifier) { ((entry = modifier(entry, b, h, i, j)), ...); },
                   score.modifiers);
        if (entry > largest) largest = entry;
      });
      // Where no score is above -infinity nothing is subtracted, and every weight is 0; a NaN
      // still reaches the sum.
      const Accumulator shift = largest > -infinity ? largest : zero;
      Accumulator sum = zero;
      for_each_key([&](Index, Accumulator& entry) {
        entry = exp(Accumulator(entry - shift));
        sum += entry;
      });

      const bool empty = sum == zero;
      if (log_sum_exp.data) {
        log_sum_exp(b, h, i) = empty ? Accumulator(-infinity) : Accumulator(shift + log(sum));
      }
      if (weights.data) {
        for (Index j = 0; j < problem.keys; ++j) weights(b, h, i, j) = static_cast<Weight>(zero);
      }
      for (Accumulator& s : sums) s = zero;
      if (!empty) {
        const auto counter = dropout.row(b, h, i);
        const auto scale = static_cast<Accumulator>(dropout.scale());
        for_each_key([&](Index j, Accumulator& entry) {
          const Accumulator weight = entry / sum;
          if (weights.data) weights(b, h, i, j) = static_cast<Weight>(weight);
          const Accumulator kept = !dropout.active()           ? weight
                                   : dropout.keeps(counter, j) ? Accumulator(weight * scale)
                                                               : zero;
          for (Index c = 0; c < problem.value_dim; ++c) {
            sums[static_cast<std::size_t>(c)] +=
                kept * static_cast<Accumulator>(in.value(b, kv, j, c));
          }
        });
      }
      for (Index c = 0; c < problem.value_dim; ++c) {
        out(b, h, i, c) = static_cast<Out>(sums[static_cast<std::size_t>(c)]);
      }
    }
  });
}

}  // namespace heed::detail
