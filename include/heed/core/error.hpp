#pragma once

#include <array>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <Eigen/Core>

namespace heed::detail {

using Eigen::Index;

inline std::string text(const char* s) { return s; }
inline std::string text(std::string s) { return s; }
inline std::string text(Index n) { return std::to_string(n); }
inline std::string text(double x) { return std::to_string(x); }

template <std::size_t Rank>
std::string text(const std::array<Index, Rank>& shape) {
  std::string result = "(";
  for (std::size_t axis = 0; axis < Rank; ++axis) {
    result += (axis ? ", " : "") + std::to_string(shape[axis]);
  }
  return result + ")";
}

/// Throws std::invalid_argument with "heed::<function>: " before the parts.
/// Out of line and cold, so that a check costs its comparison only.
template <class... Parts>
[[noreturn]] EIGEN_DONT_INLINE void fail(const char* function, const Parts&... parts) {
  throw std::invalid_argument((std::string("heed::") + function + ": " + ... + text(parts)));
}

/// A gradient has the shape of what it is a gradient of, `what`.
template <std::size_t Rank>
void check_gradient_shape(const char* function, const char* what,
                          const std::array<Index, Rank>& shape,
                          const std::array<Index, Rank>& gradient) {
  for (std::size_t axis = 0; axis < Rank; ++axis) {
    if (shape[axis] != gradient[axis]) {
      fail(function, "the gradient differs from ", what, " in axis ", static_cast<Index>(axis),
           ": ", gradient[axis], " and ", shape[axis], "; the gradient is ", gradient, ", ", what,
           " ", shape);
    }
  }
}

}  // namespace heed::detail
