#pragma once

#include <initializer_list>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

template <class Kept, class KeptGradient = detail::NoGradient>
struct Alibi : detail::ModifierTag {
  Kept slopes;
  KeptGradient gradient;

  Alibi(Kept s, KeptGradient ds) : slopes(std::forward<Kept>(s)), gradient(ds) {}
  template <class Accumulator, class Number, class Gradient>
  struct Bound {
    static constexpr bool shifts = true;
    static constexpr const char* parameter_name = "the slopes of alibi";
    View<const Number, 1> slopes;
    Gradient gradient;
    const auto& parameters() const { return slopes; }
    Accumulator operator()(const Accumulator& s, Index, Index h, Index i, Index j) const {
      return s + Accumulator(slopes(h)) * Accumulator(static_cast<double>(j - i));
    }
    template <class L>
    EIGEN_ALWAYS_INLINE L lanes(L s, Index, Index h, L i, Index j) const {
      return fma(L(slopes(h)), L(j) - i, s);
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem) const {
    const auto view = detail::parameter_view(slopes);
    const auto ds = detail::gradient_view<1>(gradient);
    if (view.shape[0] != problem.heads) {
      detail::fail(problem.function, "alibi has ", view.shape[0], " slopes for ", problem.heads,
                   " query heads; the scores are ", problem.score_shape());
    }
    return Bound<Accumulator, typename decltype(view)::Scalar, std::remove_const_t<decltype(ds)>>{
        view, ds};
  }
};

/// Adds slope_h (j - i) for query i and key j of head h (Press, Smith and Lewis, "Train short, test
/// long", 2022). slopes: one for each query head; they must outlive the modifier unless temporary.
template <class Slopes>
auto alibi(Slopes&& slopes) {
  return Alibi<detail::Kept<Slopes&&>>(std::forward<Slopes>(slopes), {});
}
/// attention_backward adds the gradient of the slopes to dslopes, a vector of their length that
/// outlives the modifier, or a View.
template <class Slopes, class Gradient>
auto alibi(Slopes&& slopes, Gradient&& dslopes) {
  detail::check_gradient_type<Gradient&&>();
  return Alibi<detail::Kept<Slopes&&>, detail::KeptGradient<Gradient&&>>(
      std::forward<Slopes>(slopes), dslopes);
}
inline auto alibi(std::initializer_list<double> slopes) {
  return alibi(std::vector<double>(slopes));
}

}  // namespace heed
