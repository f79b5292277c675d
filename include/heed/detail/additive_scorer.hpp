#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "heed/detail/math.hpp"
#include "heed/detail/scorer.hpp"

namespace heed::detail {

/// sum over h of w_h tanh(q_h + k_h).
template <class S>
concept SumOfTanh = requires(const S& s) {
  s.weight;
  s.unit;
};

/// With a = e^2q e^2k, tanh(q + k) = 1 - 2 / (1 + a): the exponentials are taken once for a query's
/// and a key's feature, and a pair costs a multiply-add and its share of a division. Two features
/// share one,
///   w1 / (1 + a1) + w2 / (1 + a2) = (w1 (1 + a2) + w2 (1 + a1)) / ((1 + a1) (1 + a2)),
/// and (w1 + w2) / 2 is taken off each such pair, so that the sums stay as small as those of tanh.
/// The error of a feature is absolute, some units of rounding of |w_h|.
///
/// The product of two sums must not overflow: a feature beyond `limit` makes its query or key wild,
/// and the pairs of that query or key are computed by tanh itself. So a pair's score depends on the
/// pair alone.
template <class Accumulator, SumOfTanh Similarity>
class Scorer<Accumulator, Similarity> {
  using L = Lanes<Accumulator>;

 public:
  Scorer(const Similarity& similarity, Index, Index dim, Index lanes, Index tile_keys,
         Scratch& scratch)
      : similarity_(similarity),
        dim_(dim),
        even_((dim + 1) / 2 * 2),
        query_(scratch.take<Accumulator>(dim * lanes)),
        query_exp_(scratch.take<Accumulator>(even_ * lanes)),
        key_exp_(scratch.take<Accumulator>(tile_keys * even_)),
        key_wild_(scratch.take<Accumulator>(tile_keys)),
        lane_wild_(scratch.take<Accumulator>(lanes)),
        weight_(scratch.take<Accumulator>(even_)) {
    for (Index h = 0; h < dim; ++h) weight_[h] = static_cast<Accumulator>(similarity.weight(h));
    if (even_ > dim) weight_[dim] = 0;
  }
  static std::size_t bytes(Index, Index dim, Index lanes, Index tile_keys) {
    const Index even = (dim + 1) / 2 * 2;
    return Scratch::bytes<Accumulator>(dim * lanes) + Scratch::bytes<Accumulator>(even * lanes) +
           Scratch::bytes<Accumulator>(tile_keys * even) + Scratch::bytes<Accumulator>(tile_keys) +
           Scratch::bytes<Accumulator>(lanes) + Scratch::bytes<Accumulator>(even);
  }

  template <int Vectors, class Query>
  void pack(const Slab<const Query>& query, Index first, Index count) {
    constexpr Index lanes = Vectors * L::size;
    pack_lanes(query, first, count, dim_, lanes, query_);
    any_lane_wild_ = false;
    for (int v = 0; v < Vectors; ++v) {
      L largest(0);
      for (Index h = 0; h < dim_; ++h) {
        const L q = L::load(query_ + (h * Vectors + v) * L::size);
        exp(q + q).store(query_exp_ + (h * Vectors + v) * L::size);
        const L size = select(q == q, abs(q), L(std::numeric_limits<Accumulator>::infinity()));
        largest = max(largest, size);
      }
      if (even_ > dim_) L(0).store(query_exp_ + (dim_ * Vectors + v) * L::size);
      const L wild = select(largest <= L(limit()), L(0), L(1));
      wild.store(lane_wild_ + v * L::size);
      for (Index lane = 0; lane < L::size; ++lane) {
        any_lane_wild_ = any_lane_wild_ || lane_wild_[v * L::size + lane] > 0;
      }
    }
  }

  template <int Vectors>
  EIGEN_DONT_INLINE void score(const Rows<Accumulator>& keys, Index first, Index last,
                               Accumulator* scores, Accumulator* largest) const {
    const bool any_key_wild = exponentials(keys, first, last);
    for_each_tile<tile_rows<Vectors> / 2>(
        last,
        [&]<int Keys>(Index j) __attribute__((always_inline)) {
          L sum[Keys][Vectors];
#pragma GCC unroll 16
          for (auto& row : sum) {
#pragma GCC unroll 16
            for (L& vector : row) vector = L(0);
          }
          for (Index h = 0; h < even_; h += 2) {
            const L w1(weight_[h]), w2(weight_[h + 1]),
                half(Accumulator(0.5) * (weight_[h] + weight_[h + 1]));
            const Accumulator* query = query_exp_ + h * Vectors * L::size;
#pragma GCC unroll 16
            for (int r = 0; r < Keys; ++r) {
              const Accumulator* key = key_exp_ + (j + r) * even_ + h;
              const L k1(key[0]), k2(key[1]);
#pragma GCC unroll 16
              for (int v = 0; v < Vectors; ++v) {
                const L a = fma(L::load(query + v * L::size), k1, L(1));
                const L b = fma(L::load(query + (Vectors + v) * L::size), k2, L(1));
                sum[r][v] += fma(w1, b, w2 * a) / (a * b) - half;
              }
            }
          }
#pragma GCC unroll 16
          for (int r = 0; r < Keys; ++r) {
#pragma GCC unroll 16
            for (int v = 0; v < Vectors; ++v) {
              const L score = sum[r][v] * L(Accumulator(-2) * similarity_.unit);
              score.store(scores + ((j + r) * Vectors + v) * L::size);
            }
          }
        },
        first);
    if (any_key_wild || any_lane_wild_) recompute<Vectors>(keys, first, last, scores);
    for (int v = 0; v < Vectors; ++v) {
      L most = L::load(largest + v * L::size);
      for (Index j = first; j < last; ++j) {
        most = max(most, L::load(scores + (j * Vectors + v) * L::size));
      }
      most.store(largest + v * L::size);
    }
  }

 private:
  /// Each exponential is below max^(2/5), so that the product of two sums stays below max^(4/5) and
  /// leaves the rest to the weights.
  static Accumulator limit() {
    return std::log(std::numeric_limits<Accumulator>::max()) / Accumulator(10);
  }

  /// e^2k of a tile, [key][feature], and which keys are wild.
  bool exponentials(const Rows<Accumulator>& keys, Index first, Index last) const {
    bool any = false;
    for (Index j = first; j < last; ++j) {
      const Accumulator* from = keys[j];
      Accumulator* to = key_exp_ + j * even_;
      bool tame = true;
      Index h = 0;
      for (; h + L::size <= dim_; h += L::size) {
        const L k = L::load(from + h);
        exp(k + k).store(to + h);
      }
      for (; h < dim_; ++h) to[h] = std::exp(from[h] + from[h]);
      for (h = 0; h < dim_; ++h) tame = tame & (std::abs(from[h]) <= limit());
      if (even_ > dim_) to[dim_] = 0;
      key_wild_[j] = tame ? 0 : 1;
      any = any || !tame;
    }
    return any;
  }

  template <int Vectors>
  EIGEN_DONT_INLINE void recompute(const Rows<Accumulator>& keys, Index first, Index last,
                                   Accumulator* scores) const {
    for (Index j = first; j < last; ++j) {
      if (!any_lane_wild_ && key_wild_[j] == 0) continue;
      for (int v = 0; v < Vectors; ++v) {
        L sum(0);
        for (Index h = 0; h < dim_; ++h) {
          const L query = L::load(query_ + (h * Vectors + v) * L::size);
          sum = similarity_.step(sum, query, L(keys[j][h]), h);
        }
        Accumulator* at = scores + (j * Vectors + v) * L::size;
        const auto wild = (L::load(lane_wild_ + v * L::size) > L(0)) | (L(key_wild_[j]) > L(0));
        select(wild, similarity_.finish(sum), L::load(at)).store(at);
      }
    }
  }

  const Similarity& similarity_;
  Index dim_, even_;  // features, and as many rounded up to pairs
  Accumulator *query_, *query_exp_, *key_exp_, *key_wild_, *lane_wild_, *weight_;
  bool any_lane_wild_ = false;
};

}  // namespace heed::detail
