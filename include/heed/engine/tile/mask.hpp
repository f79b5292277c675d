#pragma once

#include <algorithm>
#include <new>
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
    Index begin = keys, end = 0;
    KeyRange clear{0, keys};
    bool exact = true;
    for (Index lane = 0; lane < count; ++lane) {
      const Set& row = *new (rows_ + lane) Set(mask.row(batch, head, first + lane));
      exact = exact && row.exact;
      KeyRange seen{keys, 0}, by_all{0, 0};
      if (row.count > 0) seen = {row[0].begin, row[row.count - 1].end};
      if (row.count == 1 && row.exact) by_all = seen;
      begin = std::min(begin, seen.begin);
      end = std::max(end, seen.end);
      clear = {std::max(clear.begin, by_all.begin), std::min(clear.end, by_all.end)};
    }
    begin_ = begin;
    end_ = end;
    clear_ = clear;
    exact_ = exact;
    if (in_ranges()) place(begin);
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
    if (in_ranges()) {
      if (first < origin_ || first + count - origin_ > reach) place(first);
      key_ = first - origin_;
      const L end(static_cast<Scalar>(key_ + count));
      Index stair = 0;
      for (Index vector = 0; vector * L::size < used_; ++vector) {
        const L from = L::load(from_ + vector * L::size), to = L::load(to_ + vector * L::size);
        const auto last = static_cast<Index>(largest_lane(select(from < end, to, L(0))));
        ends_[vector] = stair = std::max(stair, std::min(last - key_, count));
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
    const L key(static_cast<Scalar>(key_ + j));
    return (L::load(from_ + v * L::size) <= key) & (key < L::load(to_ + v * L::size));
  }
  bool visible_to(Index j, Index lane) const {
    if (pairs_) return pairs_[j * lanes + lane] > 0;
    const auto key = static_cast<Scalar>(key_ + j);
    return from_[lane] <= key && key < to_[lane];
  }

 private:
  /// Each query sees one range of keys, and all of it.
  bool in_ranges() const { return Set::capacity == 1 && exact_; }

  /// Lays out the ranges as they are from key `origin` on. Whole numbers beyond 2^24 are rounded,
  /// and stay on their side of a tile that is nearer.
  void place(Index origin) {
    origin_ = origin;
    for (Index lane = 0; lane < used_; ++lane) {
      const Set& row = rows_[std::min(lane, last_)];
      from_[lane] = row.count > 0 ? static_cast<Scalar>(row[0].begin - origin) : 0;
      to_[lane] = row.count > 0 ? static_cast<Scalar>(row[0].end - origin) : 0;
    }
  }
  static constexpr Index reach = Index(1) << 23;

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
  // Made in place: a copy would wait until what has been written number by number can be read as
  // vectors.
  union {
    Set rows_[length(lanes)];
  };
  bool exact_;
  Index begin_, end_;
  KeyRange clear_;  // seen by every query, where each has one exact range

  Index clear_begin_ = 0, clear_end_ = 0;
  Index ends_[length(vectors)];  // keys from there on are seen by later vectors alone
  const Scalar* pairs_ = nullptr;
  Index origin_ = 0, key_ = 0;  // the ranges count from there on, and the tile begins at
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
