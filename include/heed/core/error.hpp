#pragma once

#include <algorithm>
#include <array>
#include <charconv>
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
inline std::string text(double x) {
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof digits, x).ptr};
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

/// Refuses extents that are negative, and shapes with so many elements that an address would
/// overflow. `name` tells the tensor.
template <std::size_t Rank>
EIGEN_ALWAYS_INLINE void check_extents(const char* function, const char* name,
                                       const std::array<Index, Rank>& shape) {
  // The largest elements that are addressed have 16 bytes.
  constexpr Index most = std::numeric_limits<Index>::max() / 16;
  Index product = 1;
  bool overflows = false, negative = false, empty = false;
  for (const Index extent : shape) {
    negative = negative || extent < 0;
    empty = empty || extent == 0;
    overflows = overflows || (extent > 0 && product > most / extent);
    if (!overflows) product *= std::max<Index>(extent, 1);
  }
  if (negative) fail(function, name, " has a negative extent: ", shape);
  if (overflows && !empty) fail(function, name, " has more elements than memory: ", shape);
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
