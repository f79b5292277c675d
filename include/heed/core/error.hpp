#pragma once

#include <array>
#include <charconv>
#include <concepts>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>
#include <Eigen/Core>

namespace heed::detail {

using Eigen::Index;

inline std::string text(const char* s) { return s; }
inline std::string text(std::string s) { return s; }
inline std::string text(Index n) { return std::to_string(n); }
/// The shortest text that reads back as the same number.
template <std::floating_point Number>
std::string text(Number x) {
  std::array<char, 128> digits;  // more than any number takes in its shortest form
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), x).ptr;
  return std::string(digits.data(), end);
}

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

/// Refuses a shape with a negative extent, or of more numbers than an Index counts in bytes, with
/// room for a few times as many: what is computed from such a shape would overflow. An axis of 0
/// does not excuse the others, for they are multiplied in any order.
template <std::size_t Rank>
void check_extents(const char* function, const char* name, const std::array<Index, Rank>& shape) {
  Index room = std::numeric_limits<Index>::max() / 64;
  for (std::size_t axis = 0; axis < Rank; ++axis) {
    if (shape[axis] < 0) {
      fail(function, name, " has a negative extent of ", shape[axis], " in axis ",
           static_cast<Index>(axis), "; its shape is ", shape);
    }
    if (shape[axis] > room) fail(function, name, " of shape ", shape, " has too many elements");
    if (shape[axis] > 1) room /= shape[axis];
  }
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
