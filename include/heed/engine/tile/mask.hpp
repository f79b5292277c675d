#pragma once

#include <algorithm>
#include <type_traits>

#include "heed/kernel/panels.hpp"
#include "heed/kernel/stairs.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/key_set.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

enum class Coverage { empty, partial, full };

template <class Mask>
concept HidesNothing = mask_traits<Mask>.hides_nothing;

/// What a mask says to the queries of one panel, and to a tile of keys at a time. Pairs of a tile
/// lie as [key][lane of the widest panel].
template <class BoundMask, class Scalar>
class PanelMask {
  using L = Lanes<Scalar>;
  using Set = KeySetOf<BoundMask>;
  static constexpr Index vectors = Panels<Scalar>::widest, lanes = vectors * L::size;

 public:
  /// Queries first .. first + count-1 of a head; lanes from count up to `used` are as the last
  /// query.
  PanelMask(const BoundMask& mask, Index batch, Index head, Index first, Index count, Index used,
            Index keys)
      : mask_(mask), batch_(batch), head_(head), first_(first), last_(count - 1), used_(used) {
    begin_ = keys;
    end_ = 0;
    clear_ = {0, keys};
    for (Index lane = 0; lane < used_; ++lane) {
      Set& row = rows_[lane];
      row = lane < count ? mask.row(batch, head, first + lane) : rows_[last_];
      exact_ = exact_ && row.exact;
      if (row.count == 0) {
        clear_ = {0, 0};
        continue;
      }
      begin_ = std::min(begin_, row[0].begin);
      end_ = std::max(end_, row[row.count - 1].end);
      if (row.count == 1 && row.exact) {
        clear_ = {std::max(clear_.begin, row[0].begin), std::min(clear_.end, row[0].end)};
      } else {
        clear_ = {0, 0};
      }
    }
  }

  /// No query sees a key outside begin() .. end()-1.
  Index begin() const { return begin_; }
  Index end() const { return end_; }

  /// Turns to keys first .. first + count-1. `pairs` has room for count * lanes numbers; it is used
  /// where a query's keys are more than one range, or have to be asked for one by one.
  Coverage tile(Index first, Index count, Scalar* pairs) {
    pairs_ = nullptr;
    std::fill(ends_, ends_ + vectors, count);
    clear_begin_ = std::clamp<Index>(clear_.begin - first, 0, count);
    clear_end_ = std::clamp<Index>(clear_.end - first, clear_begin_, count);
    if (clear_end_ - clear_begin_ == count) return Coverage::full;
    if (Set::capacity == 1 && exact_) {
      Index stair = 0;
      for (Index vector = 0; vector * L::size < used_; ++vector) {
        for (Index lane = vector * L::size; lane < (vector + 1) * L::size; ++lane) {
          const KeyRange range = rows_[lane].count ? rows_[lane][0] : KeyRange{0, 0};
          const Index from = std::clamp<Index>(range.begin - first, 0, count);
          const Index to = std::clamp<Index>(range.end - first, from, count);
          from_[lane] = static_cast<Scalar>(from);
          to_[lane] = static_cast<Scalar>(to);
          stair = std::max(stair, from < to ? to : 0);
        }
        ends_[vector] = stair;
      }
      return stair > 0 ? Coverage::partial : Coverage::empty;
    }
    return ask(first, count, pairs);
  }

  /// Keys of the tile that every query sees are clear_begin() .. clear_end()-1.
  Index clear_begin() const { return clear_begin_; }
  Index clear_end() const { return clear_end_; }

  /// As far as the queries of each vector see the tile.
  Stairs stairs() const { return {ends_}; }

  /// As many keys of the tile as a query of vectors 0 .. v sees at most.
  Index stair(int v) const { return ends_[v]; }

  /// Which lanes of vector v see key j of the tile.
  EIGEN_ALWAYS_INLINE LaneMask<Scalar> visible(Index j, int v) const {
    if (pairs_) return L::load(pairs_ + j * lanes + v * L::size) > L(0);
    const L key(static_cast<Scalar>(j));
    return (L::load(from_ + v * L::size) <= key) & (key < L::load(to_ + v * L::size));
  }
  bool visible_to(Index j, Index lane) const {
    if (pairs_) return pairs_[j * lanes + lane] > 0;
    const auto key = static_cast<Scalar>(j);
    return from_[lane] <= key && key < to_[lane];
  }

 private:
  EIGEN_DONT_INLINE Coverage ask(Index first, Index count, Scalar* pairs) {
    std::fill(pairs, pairs + count * lanes, Scalar(0));
    Index seen = 0;
    for (Index lane = 0; lane <= last_; ++lane) {
      for_each_visible(mask_, rows_[lane], batch_, head_, first_ + lane, first, first + count,
                       [&](Index j) {
                         pairs[(j - first) * lanes + lane] = 1;
                         ++seen;
                       });
    }
    for (Index j = 0; j < count; ++j) {
      Scalar* const row = pairs + j * lanes;
      std::fill(row + last_ + 1, row + used_, row[last_]);
    }
    if (seen == 0) return Coverage::empty;
    if (seen == count * (last_ + 1)) {
      clear_begin_ = 0;
      clear_end_ = count;
      return Coverage::full;
    }
    clear_begin_ = clear_end_ = 0;
    pairs_ = pairs;
    return Coverage::partial;
  }

  const BoundMask& mask_;
  Index batch_, head_, first_, last_, used_;
  Set rows_[length(lanes)];
  bool exact_ = true;
  Index begin_, end_;
  KeyRange clear_;  // seen by every query, where each has one exact range

  Index clear_begin_ = 0, clear_end_ = 0;
  Index ends_[length(vectors)];  // keys from there on are seen by later vectors alone
  const Scalar* pairs_ = nullptr;
  alignas(64) Scalar from_[length(lanes)];
  alignas(64) Scalar to_[length(lanes)];
};

template <HidesNothing BoundMask, class Scalar>
class PanelMask<BoundMask, Scalar> {
 public:
  PanelMask(const BoundMask&, Index, Index, Index, Index, Index, Index keys) : keys_(keys) {}
  Index begin() const { return 0; }
  Index end() const { return keys_; }
  Coverage tile(Index, Index count, Scalar*) {
    count_ = count;
    return Coverage::full;
  }
  Index clear_begin() const { return 0; }
  Index clear_end() const { return count_; }
  Index stair(int) const { return count_; }
  AllVectors stairs() const { return {}; }
  EIGEN_ALWAYS_INLINE LaneMask<Scalar> visible(Index, int) const {
    return Lanes<Scalar>(0) == Lanes<Scalar>(0);
  }
  bool visible_to(Index, Index) const { return true; }

 private:
  Index keys_, count_ = 0;
};

}  // namespace heed::detail
