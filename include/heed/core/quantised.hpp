#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <Eigen/Core>

namespace heed {

/// Element of caches: rows of whole numbers of 8 bits, each row times a float of its own (Dettmers
/// et al., "LLM.int8()", 2022, row-wise). A number is off by at most 1/254 of the row's largest. A
/// row with a number that is not finite is NaN.
struct Quantised8 {};

namespace detail {

/// What the numbers of a row are in memory.
template <class Element>
using Stored = std::conditional_t<std::is_same_v<Element, Quantised8>, std::int8_t, Element>;

/// Writes number(c), c < width, as whole numbers; returns what they are to be multiplied by.
template <class Number>
float quantise(const Number& number, Eigen::Index width, std::int8_t* to) {
  double largest = 0;
  bool finite = true;
  for (Eigen::Index c = 0; c < width; ++c) {
    const double size = std::abs(number(c));
    finite = finite && std::isfinite(size);
    if (size > largest) largest = size;
  }
  // Where the largest is too small to divide by, the row is 0.
  const double whole = 127 / largest, to_whole = finite && std::isfinite(whole) ? whole : 0;
  for (Eigen::Index c = 0; c < width; ++c) {
    to[c] = static_cast<std::int8_t>(finite ? std::lrint(number(c) * to_whole) : 0);
  }
  return finite ? static_cast<float>(largest / 127) : std::nanf("");
}

}  // namespace detail
}  // namespace heed
