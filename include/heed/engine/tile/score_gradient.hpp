#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "heed/engine/tile/score_additive.hpp"
#include "heed/kernel/outer_product.hpp"
#include "heed/policy/contract.hpp"
#include "heed/simd/math.hpp"

namespace heed::detail {

/// What a block of queries and a tile of keys have for the gradients of a similarity that is no
/// product: lanes over features, one vector of them after the other (SingleVectors).
template <class Number>
struct ScoreGradientTile {
  const QueryPanel* panels;
  Index panel_count;
  const Number* gradients;  // by the sums of terms: for each panel of queries [key][lane]
  Index gradient_capacity;  // keys of that layout
  Index keys, dim;
  const Number *query, *key;  // [query], [key] by features
  Index query_capacity, key_capacity;
  const Number* parameter;                // of each feature, or 0
  Number *d_query, *d_key, *d_parameter;  // to be added to; d_key as d_key_capacity rows
  Index d_key_capacity;
};

/// Adds to the gradients of queries, keys and parameters: for each vector of features and a few
/// keys, whose gradients stay in registers, all queries of the block.
template <class Number, class Similarity>
EIGEN_DONT_INLINE void add_slopes(const Similarity& similarity,
                                  const ScoreGradientTile<Number>& tile) {
  using L = Lanes<Number>;
  constexpr Index n = L::size;
  for (Index h = 0; h < tile.dim; h += n) {
    const L w = L::load(tile.parameter + h);
    L d_parameter(0);
    for_each_tile<4>(tile.keys, [&]<int Keys>(Index j) __attribute__((always_inline)) {
      L key[length(Keys)], d_key[length(Keys)];
      Number* to = tile.d_key + h * tile.d_key_capacity + j * n;
#pragma GCC unroll 16
      for (int r = 0; r < Keys; ++r) {
        key[r] = L::load(tile.key + h * tile.key_capacity + (j + r) * n);
        d_key[r] = L::load(to + r * n);
      }
      for (Index p = 0; p < tile.panel_count; ++p) {
        const QueryPanel& panel = tile.panels[p];
        if (j >= panel.keys) continue;
        const Number* x = tile.gradients + panel.first * tile.gradient_capacity + j * panel.lanes;
        const Index start = h * tile.query_capacity + panel.first * n;
        for (Index i = 0; i < panel.count; ++i) {
          const L query = L::load(tile.query + start + i * n);
          L d_query = L::load(tile.d_query + start + i * n);
#pragma GCC unroll 16
          for (int r = 0; r < Keys; ++r) {
            const L g(x[r * panel.lanes + i]);
            const auto slopes =
                term_slopes(similarity, query, key[r], w, h, std::min(n, tile.dim - h));
            // A pair without weight may have an infinite slope, which is not looked at.
            const auto counts = [none = g == L(0)](L slope) __attribute__((always_inline)) {
              return select(none, L(0), slope);
            };
            d_query = fma(g, counts(slopes.query), d_query);
            d_key[r] = fma(g, counts(slopes.key), d_key[r]);
            d_parameter = fma(g, counts(slopes.parameter), d_parameter);
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

/// e^2x of features with lanes over them, `count` rows of `capacity`; false where one of them is
/// beyond the limit below which the product of two 1 + e^2q e^2k cannot overflow, or NaN.
template <class Number>
EIGEN_DONT_INLINE bool double_exponentials(const Number* features, Index capacity, Index count,
                                           Index columns, Number* result) {
  using L = Lanes<Number>;
  const L limit(std::log(std::numeric_limits<Number>::max()) / Number(10));
  L wild(0);
  const SingleVectors<Number> panels(columns);
  for (Index p = 0; p < panels.count; ++p) {
    const Index start = panels[p].first * capacity;
    for (Index at = start; at < start + count * L::size; at += L::size) {
      const L x = L::load(features + at);
      wild = select(abs(x) <= limit, wild, L(1));
      exp(x + x).store(result + at);
    }
  }
  alignas(64) Number lanes[L::size];
  wild.store(lanes);
  return std::none_of(lanes, lanes + L::size, [](Number lane) { return lane != 0; });
}

/// add_slopes for sums of w tanh(q + k), from e^2q and e^2k in place of q and k. With
/// r = 1 / (1 + e^2q e^2k), tanh = 1 - 2 r and its derivative is 4 r (1 - r); two keys share a
/// division, r1 = (1 + a2) / ((1 + a1) (1 + a2)).
template <class Number>
EIGEN_DONT_INLINE void add_tanh_slopes(const ScoreGradientTile<Number>& tile, bool trained) {
  using L = Lanes<Number>;
  constexpr Index n = L::size;
  L total(0);
  for (Index p = 0; p < tile.panel_count; ++p) {
    const QueryPanel& panel = tile.panels[p];
    const Number* x = tile.gradients + panel.first * tile.gradient_capacity;
    // Lanes that are no queries hold 0.
    for (Index at = 0; at < panel.keys * panel.lanes; at += n) total += L::load(x + at);
  }
  const Number sum = sum_of_lanes(total);

  for (Index h = 0; h < tile.dim; h += n) {
    const L factor = L::load(tile.parameter + h) * L(4);
    L by_r(0);
    const auto go = [&]<int Keys, bool Trained>(Index j) __attribute__((always_inline)) {
      constexpr int pairs = (Keys + 1) / 2;
      L key[length(Keys)], d_key[length(Keys)];
#pragma GCC unroll 16
      for (int r = 0; r < Keys; ++r) {
        key[r] = L::load(tile.key + h * tile.key_capacity + (j + r) * n);
        d_key[r] = L(0);
      }
      for (Index p = 0; p < tile.panel_count; ++p) {
        const QueryPanel& panel = tile.panels[p];
        if (j >= panel.keys) continue;
        const Number* x = tile.gradients + panel.first * tile.gradient_capacity + j * panel.lanes;
        const Index start = h * tile.query_capacity + panel.first * n;
        const Index stride = panel.lanes;
        for (Index i = 0; i < panel.count; ++i) {
          const L query = L::load(tile.query + start + i * n);
          L d_query(0);
#pragma GCC unroll 16
          for (int pair = 0; pair < pairs; ++pair) {
            const int one = 2 * pair, two = std::min(one + 1, Keys - 1);
            const L a = fma(query, key[one], L(1)), b = fma(query, key[two], L(1));
            const L inverse = L(1) / (a * b);
#pragma GCC unroll 2
            for (int k = one; k <= two; ++k) {
              const L r = (k == one ? b : a) * inverse;
              const L slope = fma(-r, r, r), g(x[k * stride + i]);
              d_query = fma(g, slope, d_query);
              d_key[k] = fma(g, slope, d_key[k]);
              if constexpr (Trained) by_r = fma(g, r, by_r);
            }
          }
          Number* to = tile.d_query + start + i * n;
          fma(factor, d_query, L::load(to)).store(to);
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < Keys; ++r) {
        Number* to = tile.d_key + h * tile.d_key_capacity + (j + r) * n;
        fma(factor, d_key[r], L::load(to)).store(to);
      }
    };
    if (trained) {
      for_each_tile<4>(tile.keys, [&]<int Keys>(Index j) __attribute__((always_inline)) {
        go.template operator()<Keys, true>(j);
      });
      const L d_parameter = fma(L(-2), by_r, L(sum));
      (L::load(tile.d_parameter + h) + d_parameter).store(tile.d_parameter + h);
    } else {
      for_each_tile<4>(tile.keys, [&]<int Keys>(Index j) __attribute__((always_inline)) {
        go.template operator()<Keys, false>(j);
      });
    }
  }
}

}  // namespace heed::detail
