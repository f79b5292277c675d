#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/view.hpp"

namespace heed::detail {

/// Attention to one set of keys after another, as `merge` puts two of them together: outputs o_n
/// and log-sum-exps l_n give
///
///   sum_n e^(l_n - r) o_n / sum_n e^(l_n - r)
///
/// for any r. It is the first l_n, until one is so much larger that the sums could overflow: each
/// set costs a row one rounding of its sum, and a single set is kept as it is.
template <class Number>
class RunningMerge {
 public:
  RunningMerge(Index batch, Index heads, Index queries, Index width)
      : shape_{batch, heads, queries, width} {}

  void lay(Layout& layout) {
    const Index rows = shape_[0] * shape_[1] * shape_[2];
    states_ = layout.take<State>(rows);
    sums_ = layout.take<Number>(rows * shape_[3]);
  }
  void start() { std::fill(states_, states_ + shape_[0] * shape_[1] * shape_[2], State{}); }

  /// Takes queries first .. first + log_sum_exp.shape[2]-1 over one more set.
  void absorb(Index first, const View<Number, 4>& output, const View<Number, 3>& log_sum_exp,
              Eigen::ThreadPoolInterface* pool) {
    const Index queries = log_sum_exp.shape[2], rows = shape_[0] * shape_[1] * queries;
    parallel_for(pool, rows, [&](Index from, Index to) {
      for (Index row = from; row < to; ++row) {
        const Index head = row / queries, i = row % queries;
        const Index b = head / shape_[1], h = head % shape_[1];
        absorb_row(head * shape_[2] + first + i, log_sum_exp(b, h, i), &output(b, h, i, 0));
      }
    });
  }

  /// Takes a key of one more score and a value of 0 for every query of a head.
  void absorb_sink(Index b, Index h, Number logit) {
    for (Index i = 0; i < shape_[2]; ++i) {
      absorb_row((b * shape_[1] + h) * shape_[2] + i, logit, nullptr);
    }
  }

  template <class Element, class Rows>
  void finish(const View<Element, 4>& output, const Rows& log_sum_exp) const {
    for_each_row(shape_, [&](Index b, Index h, Index i) {
      const Index row = (b * shape_[1] + h) * shape_[2] + i;
      const State& state = states_[row];
      const bool empty = state.sum == 0;
      const auto factor = static_cast<Number>(empty ? 0 : 1 / state.sum);
      for (Index c = 0; c < shape_[3]; ++c) {
        output(b, h, i, c) =
            empty ? Element(0) : static_cast<Element>(sums_[row * shape_[3] + c] * factor);
      }
      if (log_sum_exp.data) {
        log_sum_exp(b, h, i) = empty ? -std::numeric_limits<Number>::infinity()
                                     : static_cast<Number>(state.reference + std::log(state.sum));
      }
    });
  }

 private:
  struct State {
    double reference = 0, sum = 0;
  };
  /// e^30 times the largest output that is worth its name is a float.
  static constexpr double largest_step = 30;

  void absorb_row(Index row, Number log_sum_exp, const Number* output) {
    if (log_sum_exp == -std::numeric_limits<Number>::infinity()) return;
    State& state = states_[row];
    Number* const sums = sums_ + row * shape_[3];
    const auto lse = static_cast<double>(log_sum_exp);
    Number keep(1), weight(1);
    if (state.sum == 0) {
      keep = Number(0);
      state = {lse, 1};
      for (Index c = 0; c < shape_[3]; ++c) sums[c] = output ? output[c] : Number(0);
      return;
    }
    if (lse - state.reference > largest_step) {
      const double factor = std::exp(state.reference - lse);
      state = {lse, state.sum * factor + 1};
      keep = static_cast<Number>(factor);
    } else {
      const double factor = std::exp(lse - state.reference);
      state.sum += factor;
      weight = static_cast<Number>(factor);
    }
    for (Index c = 0; c < shape_[3]; ++c) {
      sums[c] = sums[c] * keep + (output ? output[c] * weight : Number(0));
    }
  }

  std::array<Index, 4> shape_;
  State* states_ = nullptr;
  Number* sums_ = nullptr;
};

}  // namespace heed::detail
