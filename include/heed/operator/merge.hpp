#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/operator/attention.hpp"

namespace heed {

/// One pass over the union of two disjoint sets of keys, from the passes over each:
/// weights in proportion to e^log_sum_exp. std::invalid_argument where the shapes of
/// the outputs differ, or a log_sum_exp does not fit them.
template <class Output, class LogSumExp>
AttentionPass<Output, LogSumExp> merge(const AttentionPass<Output, LogSumExp>& a,
                                       const AttentionPass<Output, LogSumExp>& b) {
  using std::exp, std::log;
  static_assert(!detail::is_view<Output> && !detail::is_view<LogSumExp>,
                "heed: merge gives a pass of its own, and takes passes that own their elements");
  const auto shape = view(a.output).shape;
  detail::check_extents("merge", "the output", shape);
  if (shape != view(b.output).shape) {
    detail::fail("merge", "the outputs have shapes ", shape, " and ", view(b.output).shape);
  }
  const auto check_rows = [&shape](const char* which, const auto& rows) {
    if (!std::equal(rows.begin(), rows.end(), shape.begin(), shape.end() - 1)) {
      detail::fail("merge", "the log_sum_exp of the ", which, " pass has shape ", rows,
                   ", which does not fit an output of ", shape, " (the last axis left out)");
    }
  };
  check_rows("first", detail::result_view(a.log_sum_exp).shape);
  check_rows("second", detail::result_view(b.log_sum_exp).shape);
  AttentionPass<Output, LogSumExp> result = a;
  const auto a_lse = detail::expand<3, 1>(detail::result_view(a.log_sum_exp));
  const auto b_lse = detail::expand<3, 1>(detail::result_view(b.log_sum_exp));
  const auto lse = detail::expand<3, 1>(detail::result_view(result.log_sum_exp));
  const auto b_out = detail::rank4(b.output);
  const auto out = detail::rank4(result.output);
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
  return result;
}

}  // namespace heed
