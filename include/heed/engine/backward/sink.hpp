#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>

#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"

namespace heed::detail {

/// Adds the gradient of every sink that is trained. A sink is a key whose value is 0: with
/// P_i = e^(logit - log_sum_exp_i),
///
///   d logit = sum over queries of P_i (0 - delta_i),  delta_i = dO_i . O_i
///
/// It needs no score, and is the same whatever engine gave the other gradients.
template <class Call>
void add_sink_gradients(const Call& call) {
  using Number = typename Call::Number;
  const Problem& p = call.problem;
  const auto& output = call.output.output;
  const auto& grad_output = call.output.grad_output;
  const Number zero(0.0), one(1.0);
  const auto by_logit = [&](Index b, Index h, Index i, const Number& logit) -> Number {
    using std::exp;
    const auto lse = static_cast<Number>(call.output.log_sum_exp(b, h, i));
    // At most 1: log_sum_exp may be rounded to below the logit of an only sink.
    const Number weight = logit >= lse ? one : Number(exp(Number(logit - lse)));
    if (weight == zero) return zero;
    Number delta = zero;
    for (Index c = 0; c < p.value_dim; ++c) {
      const auto o = static_cast<Number>(output(b, h, i, c));
      if (o == zero) continue;  // of a query without keys, whose gradient may be anything
      delta += static_cast<Number>(grad_output(b, h, i, c)) * o;
    }
    return -(weight * delta);
  };
  const auto add = [&](const auto& modifier) {
    using Modifier = std::remove_cvref_t<decltype(modifier)>;
    if constexpr (modifier_traits<Modifier>.is_sink && trained<Modifier>) {
      const Number none(-std::numeric_limits<double>::infinity());
      for (Index h = 0; h < p.heads; ++h) {
        const Number logit = modifier.logit(h);
        Number total = zero;
        const Index last = p.first_entry() + p.entries();
        for (Index b = p.first_entry(); b < last && !(logit == none); ++b) {
          // In runs, whose length bounds the growth of rounding errors.
          constexpr Index run = 128;
          for (Index first = 0; first < p.queries; first += run) {
            Number part = zero;
            for (Index i = first; i < std::min(first + run, p.queries); ++i) {
              part += by_logit(b, h, i, logit);
            }
            total += part;
          }
        }
        modifier.add_partial(h, total);
      }
    }
  };
  std::apply([&](const auto&... modifier) { (add(modifier), ...); }, call.definition.modifiers);
}

}  // namespace heed::detail
