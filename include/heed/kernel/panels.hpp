#pragma once

#include <algorithm>

#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// Queries (or columns) in panels of up to 3 vectors: 3 + 3 + ... , and 2 + 2 rather than 3 + 1 at
/// the end, as a panel of one vector makes poor use of the registers.
template <class Scalar>
struct Panels {
  static constexpr int widest = 3;
  Index vectors, width, count;

  /// In panels of `width` vectors, 2 or 3.
  explicit Panels(Index lanes, Index panel_width = widest)
      : vectors((lanes + Lanes<Scalar>::size - 1) / Lanes<Scalar>::size),
        width(panel_width),
        count((vectors + width - 1) / width) {}

  struct Panel {
    Index first;  // lane
    int vectors;
  };
  Panel operator[](Index p) const {
    const Index twos = width == 3 && vectors % 3 == 1 && count >= 2 ? count - 2 : count;
    if (p > twos) return {(3 * twos + 2) * Lanes<Scalar>::size, 2};
    return {p * width * Lanes<Scalar>::size,
            static_cast<int>(std::min(p == twos ? 2 : width, vectors - p * width))};
  }
};

/// Calls body.template operator()<Vectors>() for a panel of so many vectors, 1 to 3.
template <class Body>
void with_vectors(Index vectors, const Body& body) {
  switch (vectors) {
    case 1:
      return body.template operator()<1>();
    case 2:
      return body.template operator()<2>();
    default:
      body.template operator()<3>();
  }
}

/// Columns in panels of one vector each; see Panels.
template <class Scalar>
struct SingleVectors {
  Index count;

  explicit SingleVectors(Index columns)
      : count((columns + Lanes<Scalar>::size - 1) / Lanes<Scalar>::size) {}
  typename Panels<Scalar>::Panel operator[](Index p) const { return {p * Lanes<Scalar>::size, 1}; }
};

/// Columns rounded up to whole vectors.
template <class Scalar>
Index padded(Index columns) {
  return (columns + Lanes<Scalar>::size - 1) / Lanes<Scalar>::size * Lanes<Scalar>::size;
}

}  // namespace heed::detail
