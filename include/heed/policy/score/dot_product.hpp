#pragma once

#include <cmath>
#include <optional>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

/// scale * q . k
struct DotProduct : detail::ScoreTag {
  std::optional<double> scale;  // none: 1 / sqrt(dim)

  explicit DotProduct(std::optional<double> s) : scale(s) {}

  template <class Accumulator>
  using Similarity = detail::Product<Accumulator>;
  template <class Accumulator>
  auto bind(const detail::Problem& problem, double unit) const {
    detail::check_widths_agree(problem, "the dot product");
    const double by_width =
        problem.key_dim == 0 ? 1 : 1 / std::sqrt(static_cast<double>(problem.key_dim));
    return Similarity<Accumulator>{Accumulator(scale.value_or(by_width) * unit)};
  }
};

/// scale * q . k, for a scale of any sign.
inline DotProduct dot_product(double scale = 1) { return DotProduct(scale); }
/// q . k / sqrt(dim) (Vaswani et al., "Attention is all you need", 2017).
inline DotProduct scaled_dot_product() { return DotProduct(std::nullopt); }
inline DotProduct scaled_dot_product(double scale) { return DotProduct(scale); }

}  // namespace heed
