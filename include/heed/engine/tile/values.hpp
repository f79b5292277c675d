#pragma once

#include "heed/kernel/rows.hpp"

namespace heed::detail {

// A hidden pair has weight 0, but 0 times NaN or infinity is NaN: rows of values that are not
// finite and that some query of a panel does not see are kept out of the product.

/// Whether the rows of a tile that some query does not see hold no NaN and no infinity.
template <class Number>
bool edges_finite(const Rows<Number>& read, Index keys, Index width, const auto& mask) {
  const Index begin = mask.clear_begin(), end = mask.clear_end();
  return all_finite(read, begin, width) &&
         all_finite(Rows<Number>{read[end], read.stride}, keys - end, width);
}

/// The rows in the buffer of keys * width numbers, zeros in place of those that are not finite.
template <class Number>
Rows<Number> finite_rows(const Rows<Number>& read, Index keys, Index width, Number* buffer) {
  for (Index j = 0; j < keys; ++j) {
    const bool keep = all_finite(read[j], width);
    for (Index c = 0; c < width; ++c) buffer[j * width + c] = keep ? read[j][c] : 0;
  }
  return {buffer, width};
}

/// body(key, lane) for every row that is not finite and every lane that sees it.
template <class Number>
void for_each_sight_not_finite(const Rows<Number>& read, Index keys, Index width, Index lanes,
                               const auto& mask, const auto& body) {
  for (Index j = 0; j < keys; ++j) {
    if (all_finite(read[j], width)) continue;
    const bool clear = mask.clear_begin() <= j && j < mask.clear_end();
    for (Index lane = 0; lane < lanes; ++lane) {
      if (clear || mask.visible_to(j, lane)) body(j, lane);
    }
  }
}

}  // namespace heed::detail
