#pragma once

#include <cmath>
#include <optional>

#include "heed/core/error.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

/// scale * q . k
struct DotProduct : ScorePolicy {
  std::optional<double> scale;  // none: 1 / sqrt(dim)

  explicit DotProduct(std::optional<double> s) : scale(s) {}

  template <class Number, class Unit = NaturalUnit>
  auto bind(const Problem& problem) const {
    check_widths_agree(problem, "the dot product");
    const double by_width =
        problem.key_dim == 0 ? 1 : 1 / std::sqrt(static_cast<double>(problem.key_dim));
    return detail::Product<Number>{parameter_as<Number>(problem, "the scale of the dot product",
                                                        scale.value_or(by_width) * Unit::factor)};
  }
};

/// scale * q . k, for a finite scale of any sign.
inline DotProduct dot_product(double scale = 1) {
  if (!std::isfinite(scale)) detail::fail("dot_product", "the scale is ", scale);
  return DotProduct(scale);
}
/// q . k / sqrt(dim) (Vaswani et al., "Attention is all you need", 2017).
inline DotProduct scaled_dot_product() { return DotProduct(std::nullopt); }
inline DotProduct scaled_dot_product(double scale) {
  if (!std::isfinite(scale)) detail::fail("scaled_dot_product", "the scale is ", scale);
  return DotProduct(scale);
}

}  // namespace heed
