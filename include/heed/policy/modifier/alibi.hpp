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
struct Alibi : ModifierPolicy {
  Kept slopes;
  KeptGradient gradient;

  Alibi(Kept s, KeptGradient ds) : slopes(std::forward<Kept>(s)), gradient(ds) {}
  template <class Number, class Element, class Gradient>
  struct Bound {
    static constexpr ModifierTraits traits{
        .vectorised = true, .effect = Effect::shifts, .has_parameters = true};
    static constexpr const char* parameter_name = "the slopes of alibi";
    View<const Element, 1> slopes;
    Gradient gradient;
    const auto& parameters() const { return slopes; }
    template <class T>
    EIGEN_ALWAYS_INLINE T operator()(const T& s, Index, Index h, const auto& i,
                                     const auto& j) const {
      return detail::multiply_add<Number>(T(Number(slopes(h))), T(j - i), s);
    }
    Index partials() const { return slopes.shape[0]; }
    ScoreAxes shared_axes(const Problem&) const { return {}; }
    void add_gradient(const PairTile<Number>& tile, Number* partial) const {
      Number sum(0.0);
      for (Index j = 0; j < tile.keys; ++j) {
        for (Index i = 0; i < tile.queries; ++i) {
          const Index distance = tile.key + j - tile.query - i;
          sum += tile.at(j, i) * Number(static_cast<double>(distance));
        }
      }
      partial[tile.head] += sum;
    }
    void add_partial(Index head, const Number& sum) const { detail::add_to(gradient(head), sum); }
  };
  template <class Number>
  auto bind(const Problem& problem) const {
    const auto view = detail::parameter_view(slopes);
    const auto ds = detail::gradient_view<1>(gradient);
    if (view.shape[0] != problem.heads) {
      problem.refuse("alibi has ", view.shape[0], " slopes for ", problem.heads,
                     " query heads; the scores are ", problem.score_shape());
    }
    return Bound<Number, typename decltype(view)::Scalar, std::remove_const_t<decltype(ds)>>{view,
                                                                                             ds};
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
