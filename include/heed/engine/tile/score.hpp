#pragma once

#include <cstddef>

#include "heed/core/scratch.hpp"
#include "heed/kernel/pack.hpp"
#include "heed/kernel/panels.hpp"
#include "heed/kernel/register_tile.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/policy/contract.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// Scores of one panel of queries against tiles of keys: register tiles of the similarity's steps.
template <class Number, class Similarity>
class Scorer {
  using L = Lanes<Number>;
  /// A step that is more than one multiply-add holds a vector between its parts, and gets a quarter
  /// of the accumulators' registers for it.
  template <int Vectors>
  static constexpr int rows =
      is_product<Similarity> ? tile_rows<Vectors> : tile_rows<Vectors> * 3 / 4;

 public:
  /// For panels of up to `lanes` queries.
  Scorer(const Similarity& similarity, Index query_dim, Index key_dim, Index lanes, Index)
      : similarity_(similarity), query_dim_(query_dim), key_dim_(key_dim), lanes_(lanes) {}

  /// What it works in. start() follows, once.
  void lay(Layout& layout) {
    query_ = layout.take<Number>(key_dim_ * lanes_);
    raw_ = layout.take<Number>(transforms<Similarity> ? query_dim_ * lanes_ : 0);
  }
  void start() {}

  /// Takes `count` queries from `first` on as a panel of so many lanes.
  template <class Query>
  void pack(const Slab<const Query>& query, Index first, Index count, Index lanes) {
    if constexpr (transforms<Similarity>) {
      // q stands for q M: the rows of M are "values" under the "weights" q.
      pack_lanes(query, first, count, query_dim_, lanes, raw_);
      const auto& m = similarity_.transform;
      for (Index c = 0; c < key_dim_; ++c) {
        for (Index lane = 0; lane < lanes; lane += L::size) {
          L sum(0);
          for (Index r = 0; r < query_dim_; ++r) {
            sum = fma(L(m(r, c)), L::load(raw_ + r * lanes + lane), sum);
          }
          (sum * L(similarity_.query_factor)).store(query_ + c * lanes + lane);
        }
      }
    } else {
      pack_lanes(query, first, count, query_dim_, lanes, query_, query_factor<Number>(similarity_));
    }
  }

  /// Announces the tile of keys that is scored next, `count` rows from key `first` of a head that
  /// has `all`, for scorers that compute something of keys alone. `head` is the head's number.
  void take_keys(const Rows<Number>&, Index /*head*/, Index /*first*/, Index /*count*/,
                 Index /*all*/) {}

  /// scores[key][lane] of keys first .. last-1 of a tile, for the vectors of the panel from number
  /// `From` on; `largest` of each lane is raised to them.
  template <int Vectors, int From = 0>
  EIGEN_DONT_INLINE void score(const Rows<Number>& keys, Index first, Index last, Number* scores,
                               Number* largest) const {
    constexpr int count = Vectors - From;
    for_each_tile<rows<count>>(
        last,
        [&]<int Keys>(Index j) __attribute__((always_inline)) {
          RegisterTile<Number, Keys, count, Vectors> tile;
          tile.accumulate(query_ + From * L::size, keys[j], keys.stride,
                          std::integral_constant<Index, 1>(), key_dim_,
                          [this](L sum, L query, L k, Index h) __attribute__((always_inline)) {
                            return similarity_.step(sum, query, k, h);
                          });
#pragma GCC unroll 16
          for (int v = 0; v < count; ++v) {
            L most = L::load(largest + (From + v) * L::size);
#pragma GCC unroll 16
            for (int r = 0; r < Keys; ++r) {
              const L score = similarity_.finish(tile.sum[r][v]);
              score.store(scores + ((j + r) * Vectors + From + v) * L::size);
              most = max(most, score);
            }
            most.store(largest + (From + v) * L::size);
          }
        },
        first);
  }

 private:
  const Similarity& similarity_;
  Index query_dim_, key_dim_, lanes_;
  Number *query_ = nullptr, *raw_ = nullptr;
};

}  // namespace heed::detail
