#pragma once

#include <algorithm>
#include <type_traits>

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

/// Columns in as few panels of up to `widest` vectors as cover them, as even as can be.
template <class Scalar, int widest>
struct EvenPanels {
  Index vectors, count;

  explicit EvenPanels(Index columns)
      : vectors((columns + Lanes<Scalar>::size - 1) / Lanes<Scalar>::size),
        count((vectors + widest - 1) / widest) {}
  typename Panels<Scalar>::Panel operator[](Index p) const {
    const Index least = vectors / count, wider = vectors % count;
    return {(p * least + std::min(p, wider)) * Lanes<Scalar>::size,
            static_cast<int>(least + (p < wider))};
  }
};

/// Columns in panels for sums over rows: with enough registers in panels of 4, each row of which a
/// broadcast number then serves whole.
template <class Scalar>
using FeaturePanels =
    std::conditional_t<(accumulator_registers >= 24), EvenPanels<Scalar, 4>, Panels<Scalar>>;

/// Calls body.template operator()<Vectors>() for a panel of so many vectors, 1 to `most`.
template <int most = 3, class Body>
void with_vectors(Index vectors, const Body& body) {
  if constexpr (most > 1) {
    if (vectors < most) return with_vectors<most - 1>(vectors, body);
  }
  body.template operator()<most>();
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
