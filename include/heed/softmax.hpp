#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <type_traits>
#include <vector>

#include "heed/detail/math.hpp"
#include "heed/detail/parallel.hpp"
#include "heed/detail/problem.hpp"
#include "heed/mask.hpp"
#include "heed/tensor.hpp"

namespace heed {
namespace detail {

/// Softmax of a row in place. Entries of -infinity get 0; a row of nothing else, or of nothing,
/// becomes zeros.
template <class Scalar>
void softmax_row(Scalar* row, Index count) {
  using std::exp;
  const Scalar infinity(std::numeric_limits<double>::infinity()), zero(0.0);
  Scalar largest = -infinity;
  for (Index j = 0; j < count; ++j) {
    if (row[j] > largest) largest = row[j];
  }
  const Scalar shift = largest > -infinity ? largest : zero;
  Scalar sum = zero;
  Index j = 0;
  if constexpr (Laned<Scalar>) {
    using L = Lanes<Scalar>;
    L sums(0);
    for (; j + L::size <= count; j += L::size) {
      const L weight = exp2_nonpositive((L::load(row + j) - L(shift)) * L(log2_e));
      weight.store(row + j);
      sums += weight;
    }
    Scalar lanes[L::size];
    sums.store(lanes);
    for (Scalar lane : lanes) sum += lane;
  }
  for (; j < count; ++j) {
    row[j] = exp(Scalar(row[j] - shift));
    sum += row[j];
  }
  const Scalar factor = sum == zero ? zero : Scalar(Scalar(1.0) / sum);
  for (j = 0; j < count; ++j) row[j] = row[j] * factor;
}

template <class T, class M>
auto softmax_under(const char* function, const T& scores, const M& mask) {
  static_assert(rank_of<T> >= 2 && rank_of<T> <= 4, "heed: scores have a rank from 2 to 4");
  using Scalar = ScalarOf<T>;
  using Accumulate = Accumulator<Scalar>;
  const auto from = rank4(scores);
  const Problem problem{
      function, from.shape[0], from.shape[1], from.shape[1], from.shape[2], from.shape[3], 0, 0, 0};
  const auto bound = mask.bind(problem);
  auto result = make_result<Scalar, T>(view(scores).shape);
  const auto to = rank4(result);
  std::vector<Accumulate> row(static_cast<std::size_t>(problem.keys));
  for (Index b = 0; b < problem.batch; ++b) {
    for (Index h = 0; h < problem.heads; ++h) {
      for (Index i = 0; i < problem.queries; ++i) {
        // The visible scores side by side, then back to their places.
        const auto keys = bound.row(b, h, i);
        Index count = 0;
        const auto for_each_key = [&](const auto& body) {
          for (int k = 0; k < keys.count; ++k) {
            for (Index j = keys[k].begin; j < keys[k].end; ++j) {
              if (keys.exact || bound.allows(b, h, i, j)) body(j);
            }
          }
        };
        for_each_key([&](Index j) {
          row[static_cast<std::size_t>(count++)] = static_cast<Accumulate>(from(b, h, i, j));
        });
        softmax_row(row.data(), count);
        for (Index j = 0; j < problem.keys; ++j)
          to(b, h, i, j) = static_cast<Scalar>(Accumulate(0.0));
        count = 0;
        for_each_key([&](Index j) {
          to(b, h, i, j) = static_cast<Scalar>(row[static_cast<std::size_t>(count++)]);
        });
      }
    }
  }
  return result;
}

}  // namespace detail

/// e^score / sum of e^score over the last axis; scores of rank 2 to 4. A row of -infinity alone
/// becomes zeros.
template <class T>
auto softmax(const T& scores) {
  return detail::softmax_under("softmax", scores, no_mask());
}

/// softmax over the entries that the mask allows, 0 at the others, whose value never matters; zeros
/// where it allows none. Scores are (queries, keys), (batch, queries, keys) or (batch, heads,
/// queries, keys). In place of a mask, lengths as for valid_lens. std::invalid_argument where the
/// mask does not fit the scores.
template <class T, class M>
auto masked_softmax(const T& scores, const M& mask) {
  if constexpr (detail::Mask<M>) {
    return detail::softmax_under("masked_softmax", scores, mask);
  } else {
    return detail::softmax_under("masked_softmax", scores, valid_lens(mask));
  }
}
template <class T>
auto masked_softmax(const T& scores, std::initializer_list<Index> lens) {
  return masked_softmax(scores, valid_lens(lens));
}
template <class T>
auto masked_softmax(const T& scores, detail::NestedLists lens) {
  return masked_softmax(scores, valid_lens(lens));
}

}  // namespace heed
