#pragma once

#include <cmath>
#include <type_traits>
#include <utility>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

template <class Kept, class KeptGradient = detail::NoGradient>
struct Additive : ScorePolicy {
  Kept weight;
  KeptGradient gradient;

  Additive(Kept w, KeptGradient dw) : weight(std::forward<Kept>(w)), gradient(dw) {}

  template <class Number, class Element, class Gradient>
  struct Similarity {
    static constexpr ScoreTraits traits{.vectorised = true,
                                        .terms = Terms::weighted_tanh,
                                        .parameters = Parameters::per_feature,
                                        .derivative = Derivative::given};
    static constexpr const char* parameter_name = "the weights of the additive score";
    Number scale;
    View<const Element, 1> weight;
    Gradient gradient;
    template <class T>
    EIGEN_ALWAYS_INLINE T step(const T& sum, const T& q, const T& k, Index h) const {
      using std::tanh;
      const T both = q + k;
      return detail::multiply_add<Number>(T(Number(weight(h))), T(tanh(both)), sum);
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish(const T& sum) const {
      return sum * T(scale);
    }
    const auto& parameters() const { return weight; }
    Number parameter(Index h) const { return Number(weight(h)); }
    template <class T>
    EIGEN_ALWAYS_INLINE Slopes<T> slopes(const T& q, const T& k, const T& w) const {
      using std::tanh;
      const T both = q + k;
      const T t(tanh(both));
      const T slope = w * T(T(Number(1.0)) - T(t * t));
      return {slope, slope, t};
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish_slope(const T&) const {
      return T(scale);
    }
  };
  template <class Number, class Unit = NaturalUnit>
  auto bind(const Problem& problem) const {
    const auto w = detail::parameter_view(weight);
    const auto dw = detail::gradient_view<1>(gradient);
    check_widths_agree(problem, "the additive score");
    if (w.shape[0] != problem.key_dim) {
      problem.refuse("the additive score has ", w.shape[0], " weights for a width of ",
                     problem.key_dim, " (last axis of query and key)");
    }
    return Similarity<Number, typename decltype(w)::Scalar, std::remove_const_t<decltype(dw)>>{
        Number(Unit::factor), w, dw};
  }
};

/// sum over features of w_h tanh(q_h + k_h), for queries and keys that are projected already
/// (Bahdanau, Cho and Bengio, "Neural machine translation by jointly learning to align and
/// translate", 2015). w: vector of their width; it must outlive the score unless it is a temporary.
template <class Weight>
auto additive(Weight&& w) {
  return Additive<detail::Kept<Weight&&>>(std::forward<Weight>(w), {});
}
/// attention_backward adds the gradient of the weights to dw, a vector of their length that
/// outlives the score, or a View.
template <class Weight, class Gradient>
auto additive(Weight&& w, Gradient&& dw) {
  detail::check_gradient_type<Gradient&&>();
  return Additive<detail::Kept<Weight&&>, detail::KeptGradient<Gradient&&>>(std::forward<Weight>(w),
                                                                            dw);
}

}  // namespace heed
