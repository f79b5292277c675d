#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/operator/attention.hpp"

namespace heed {

namespace detail {

/// x, or what owns a copy of it: to be written to in its place.
template <class T>
auto owned_copy(const T& x) {
  if constexpr (Owner<T>) {
    return x;
  } else {
    const auto from = result_view(x);
    constexpr int rank = std::remove_const_t<decltype(from)>::Rank;
    auto copy = make_result<typename std::remove_const_t<decltype(from)>::Scalar, T>(from.shape);
    const auto all = expand<4, rank>(from), to = expand<4, rank>(result_view(copy));
    for_each_row(all.shape, [&](Index b, Index h, Index i) {
      for (Index j = 0; j < all.shape[3]; ++j) to(b, h, i, j) = all(b, h, i, j);
    });
    return copy;
  }
}

}  // namespace detail

/// One pass over the union of two disjoint sets of keys, from the passes over each:
/// weights in proportion to e^log_sum_exp. Where all keys of one part score -infinity, the result
/// is the other part's: a NaN among their values, which attention over the union would pass on, is
/// in neither part. std::invalid_argument where the shapes do not fit.
template <class Output, class LogSumExp>
auto merge(const AttentionPass<Output, LogSumExp>& a, const AttentionPass<Output, LogSumExp>& b) {
  using std::exp, std::log;
  constexpr int rank = detail::rank_of<Output>;
  const auto a_rows = detail::result_view(a.log_sum_exp),
             b_rows = detail::result_view(b.log_sum_exp);
  static_assert(rank >= 2 && std::remove_const_t<decltype(a_rows)>::Rank == rank - 1,
                "heed: log_sum_exp has the rank of the output less one");
  const auto shape = view(a.output).shape;
  if (shape != view(b.output).shape) {
    detail::fail("merge", "the outputs have shapes ", shape, " and ", view(b.output).shape);
  }
  detail::check_extents("merge", "the output", shape);
  for (const auto& rows : {a_rows, b_rows}) {
    if (!std::equal(rows.shape.begin(), rows.shape.end(), shape.begin())) {
      detail::fail("merge", "a log_sum_exp has shape ", rows.shape,
                   ", one number for each row of outputs of shape ", shape, " is needed");
    }
  }
  auto merged_output = detail::owned_copy(a.output);
  auto merged_rows = detail::owned_copy(a.log_sum_exp);
  const auto a_lse = detail::expand<3, 1>(a_rows), b_lse = detail::expand<3, 1>(b_rows);
  const auto lse = detail::expand<3, 1>(detail::result_view(merged_rows));
  const auto b_out = detail::rank4(b.output);
  const auto out = detail::rank4(merged_output);
  using Scalar = typename decltype(out)::Scalar;
  using Accumulate = typename decltype(lse)::Scalar;
  const Accumulate zero(0.0), infinity(std::numeric_limits<double>::infinity());
  for (Index n = 0; n < out.shape[0]; ++n) {
    for (Index h = 0; h < out.shape[1]; ++h) {
      for (Index i = 0; i < out.shape[2]; ++i) {
        const Accumulate x = a_lse(n, h, i), y = b_lse(n, h, i);
        // -infinity is an empty set: nothing to merge, and -inf - (-inf) would be NaN.
        if (y == -infinity) continue;
        const Accumulate larger = x > y ? x : y;
        const Accumulate from_a = x == -infinity ? zero : Accumulate(exp(Accumulate(x - larger)));
        const Accumulate from_b = exp(Accumulate(y - larger));
        const Accumulate total = from_a + from_b;
        lse(n, h, i) = larger + Accumulate(log(total));
        for (Index c = 0; c < out.shape[3]; ++c) {
          out(n, h, i, c) =
              static_cast<Scalar>((static_cast<Accumulate>(out(n, h, i, c)) * from_a +
                                   static_cast<Accumulate>(b_out(n, h, i, c)) * from_b) /
                                  total);
        }
      }
    }
  }
  return AttentionPass<decltype(merged_output), decltype(merged_rows)>{std::move(merged_output),
                                                                       std::move(merged_rows)};
}

}  // namespace heed
