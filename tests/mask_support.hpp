#pragma once

#include <functional>

#include "heed/attention.hpp"
#include "heed/mask.hpp"
#include "heed/softmax.hpp"
#include "support.hpp"

namespace heed::test {

/// (batch, heads, queries, keys) of attention under a mask.
inline Reference random_scores(const Shape& shape) { return random(shape, 17, 2); }

using Predicate = std::function<bool(Index b, Index h, Index i, Index j)>;

/// The mask allows what the written-out predicate allows: masked_softmax answers pair by pair, and
/// attention by tiles.
template <class Mask>
void expect_mask(const Shape& shape, const Mask& mask, const Predicate& allowed) {
  SCOPED_TRACE("batch, heads, queries, keys: " + text(shape));
  const auto [batch, heads, queries, keys] = shape;
  const auto weights = reference(masked_softmax(make<float, 4>(random_scores(shape)), mask));
  ASSERT_EQ(Shape(weights.dimensions()), shape);
  Index wrong = 0;
  for_each_index(shape, [&](Index b, Index h, Index i, Index j) {
    const double w = weights(b, h, i, j);
    wrong += allowed(b, h, i, j) ? !(w > 0 && w <= 1) : !(w == 0);
  });
  EXPECT_EQ(wrong, 0) << "pairs of masked_softmax";

  const Reference q = random({batch, heads, queries, 5}, 1, 2),
                  k = random({batch, heads, keys, 5}, 2);
  const Reference v = random({batch, heads, keys, 3}, 3);
  const Expected<float> expected(q, k, v, scaled_dot(), allowed);
  EXPECT_TRUE(expected.accepts(attention(make<float, 4>(q), make<float, 4>(k), make<float, 4>(v),
                                         scaled_dot_product(), mask)));
}

/// (queries, keys): one, unequal both ways, within a panel, around panels and tiles.
inline const std::vector<std::array<Index, 2>> lengths = {{1, 1},
                                                          {1, 6},
                                                          {6, 1},
                                                          {7, 9},
                                                          {panel_lanes, panel_lanes},
                                                          {panel_lanes + 1, 2 * panel_lanes + 1},
                                                          {2 * panel_lanes + 1, panel_lanes + 1},
                                                          {1, 400},
                                                          {100, 9},
                                                          {96, 193},
                                                          {193, 96},
                                                          {200, 200},
                                                          {30, 450},
                                                          {300, 200}};

/// The position of query i among the keys.
inline Index position(Align align, Index i, Index queries, Index keys) {
  return align == Align::bottom_right ? i + keys - queries : i;
}

}  // namespace heed::test
