#pragma once

#include <initializer_list>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/parameters.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

template <class Kept, class KeptGradient = detail::NoGradient>
struct Sink : ModifierPolicy {
  Kept logits;
  KeptGradient gradient;

  Sink(Kept l, KeptGradient dl) : logits(std::forward<Kept>(l)), gradient(dl) {}
  /// Scores stay as they are; engines ask for `logit`.
  template <class Number, class Element, class Gradient>
  struct Bound {
    static constexpr ModifierTraits traits{.vectorised = true,
                                           .ignores_pair = true,
                                           .effect = Effect::shifts,
                                           .has_parameters = true,
                                           .is_sink = true};
    static constexpr const char* parameter_name = "the logits of sink";
    View<const Element, 1> logits;
    Gradient gradient;
    const auto& parameters() const { return logits; }
    Number logit(Index head) const { return static_cast<Number>(logits(head)); }
    template <class T>
    EIGEN_ALWAYS_INLINE T operator()(const T& s, const auto&...) const {
      return s;
    }
    // The gradient is not one of scores: see add_sink_gradients.
    Index partials() const { return 0; }
    ScoreAxes shared_axes(const Problem&) const { return {}; }
    void add_gradient(const PairTile<Number>&, Number*) const {}
    void add_partial(Index head, const Number& sum) const { detail::add_to(gradient(head), sum); }
  };
  template <class Number>
  auto bind(const Problem& problem) const {
    const auto view = detail::parameter_view(logits);
    const auto dl = detail::gradient_view<1>(gradient);
    if (view.shape[0] != problem.heads) {
      problem.refuse("sink has ", view.shape[0], " logits for ", problem.heads,
                     " query heads; the scores are ", problem.score_shape());
    }
    const Number infinity(std::numeric_limits<double>::infinity());
    for (Index h = 0; h < view.shape[0]; ++h) {
      if (!(static_cast<Number>(view(h)) < infinity)) {
        problem.refuse("the logit of sink for query head ", h, " is infinite or no number");
      }
    }
    return Bound<Number, typename decltype(view)::Scalar, std::remove_const_t<decltype(dl)>>{view,
                                                                                             dl};
  }
};

/// One logit for each query head joins the sum of the softmax, as the score of one more key whose
/// value is 0 would, so that a query may attend to little or to nothing:
///
///   weight_ij = e^score_ij / (e^logit_h + sum over keys of e^score_ij)
///
/// Logits of 0 are "softmax off by one" (Miller, 2023); trained ones are those of gpt-oss (OpenAI,
/// 2025). log_sum_exp includes the logit. No modifier changes it, and no mask hides it: wherever
/// sink stands in the chain, a query without keys gets 0 and log_sum_exp is the logit. A logit of
/// -infinity is none; std::invalid_argument for +infinity, NaN, and where their number is not that
/// of the query heads. The logit counts once in each pass: of passes that are merged, one has it.
/// Logits must outlive the modifier unless temporary.
template <class Logits>
auto sink(Logits&& logits) {
  return Sink<detail::Kept<Logits&&>>(std::forward<Logits>(logits), {});
}
/// attention_backward adds the gradient of the logits to dlogits, a vector of their length that
/// outlives the modifier, or a View.
template <class Logits, class Gradient>
auto sink(Logits&& logits, Gradient&& dlogits) {
  detail::check_gradient_type<Gradient&&>();
  return Sink<detail::Kept<Logits&&>, detail::KeptGradient<Gradient&&>>(
      std::forward<Logits>(logits), dlogits);
}
inline auto sink(std::initializer_list<double> logits) { return sink(std::vector<double>(logits)); }

}  // namespace heed
