#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "heed/detail/additive_scorer.hpp"
#include "heed/detail/features.hpp"
#include "heed/detail/math.hpp"

namespace heed::detail {

/// What a block of queries and a tile of keys have for the gradients of a similarity that is no
/// product: lanes over features, one vector of them after the other (SingleVectors).
template <class Accumulator>
struct SlopeTile {
  const QueryPanel* panels;
  Index panel_count;
  const Accumulator* gradients;  // by the sums of terms: for each panel of queries [key][lane]
  Index gradient_capacity;       // keys of that layout
  Index keys, dim;
  const Accumulator *query, *key;  // [query], [key] by features
  Index query_capacity, key_capacity;
  const Accumulator* parameter;                // of each feature, or 0
  Accumulator *d_query, *d_key, *d_parameter;  // to be added to; d_key as d_key_capacity rows
  Index d_key_capacity;
};

/// Adds to the gradients of queries, keys and parameters: for each vector of features and a few
/// keys, whose gradients stay in registers, all queries of the block.
template <class Accumulator, class Similarity>
EIGEN_DONT_INLINE void add_slopes(const Similarity& similarity,
                                  const SlopeTile<Accumulator>& tile) {
  using L = Lanes<Accumulator>;
  constexpr Index n = L::size;
  for (Index h = 0; h < tile.dim; h += n) {
    const L w = L::load(tile.parameter + h);
    L d_parameter(0);
    for_each_tile<4>(
        tile.keys, [&]<int Keys>(Index j) __attribute__((always_inline)) {
          L key[Keys], d_key[Keys];
          Accumulator* to = tile.d_key + h * tile.d_key_capacity + j * n;
#pragma GCC unroll 16
          for (int r = 0; r < Keys; ++r) {
            key[r] = L::load(tile.key + h * tile.key_capacity + (j + r) * n);
            d_key[r] = L::load(to + r * n);
          }
          for (Index p = 0; p < tile.panel_count; ++p) {
            const QueryPanel& panel = tile.panels[p];
            if (j >= panel.keys) continue;
            const Accumulator* x =
                tile.gradients + panel.first * tile.gradient_capacity + j * panel.lanes;
            const Index start = h * tile.query_capacity + panel.first * n;
            for (Index i = 0; i < panel.count; ++i) {
              const L query = L::load(tile.query + start + i * n);
              L d_query = L::load(tile.d_query + start + i * n);
#pragma GCC unroll 16
              for (int r = 0; r < Keys; ++r) {
                const L g(x[r * panel.lanes + i]);
                auto slopes = similarity.slopes(query, key[r], w);
                if constexpr (requires { similarity.arbitrary; }) {
                  // An infinite slope of a pair without weight is not looked at.
                  slopes.query = select(g == L(0), L(0), slopes.query);
                  slopes.key = select(g == L(0), L(0), slopes.key);
                }
                d_query = fma(g, slopes.query, d_query);
                d_key[r] = fma(g, slopes.key, d_key[r]);
                d_parameter = fma(g, slopes.parameter, d_parameter);
              }
              d_query.store(tile.d_query + start + i * n);
            }
          }
#pragma GCC unroll 16
          for (int r = 0; r < Keys; ++r) d_key[r].store(to + r * n);
        });
    (L::load(tile.d_parameter + h) + d_parameter).store(tile.d_parameter + h);
  }
}

}  // namespace heed::detail
