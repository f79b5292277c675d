#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <Eigen/Core>

#include "heed/core/view.hpp"

namespace heed {

/// Keys begin .. end-1.
struct KeyRange {
  Index begin, end;
};

/// A set of keys as sorted, disjoint, non-touching ranges: what a mask made of intervals allows to
/// one query. Where `exact` is false, keys outside are hidden and those inside must be asked for.
template <int Capacity>
struct KeySet {
  static constexpr int capacity = Capacity;
  std::array<KeyRange, static_cast<std::size_t>(Capacity)> ranges;
  int count = 0;
  bool exact = true;

  KeyRange& operator[](int k) { return ranges[static_cast<std::size_t>(k)]; }
  const KeyRange& operator[](int k) const { return ranges[static_cast<std::size_t>(k)]; }

  /// Appends a range that does not begin before the last one.
  void append(KeyRange range) {
    if (range.begin >= range.end) return;
    if (count > 0 && range.begin <= (*this)[count - 1].end) {
      (*this)[count - 1].end = std::max((*this)[count - 1].end, range.end);
    } else {
      (*this)[count++] = range;
    }
  }

  static KeySet of(KeyRange range, bool exact = true) {
    KeySet set;
    set.append(range);
    set.exact = exact;
    return set;
  }
};

template <int A, int B>
KeySet<A + B - 1> intersection(const KeySet<A>& a, const KeySet<B>& b) {
  KeySet<A + B - 1> result;
  result.exact = a.exact && b.exact;
  for (int i = 0, j = 0; i < a.count && j < b.count;) {
    result.append({std::max(a[i].begin, b[j].begin), std::min(a[i].end, b[j].end)});
    a[i].end < b[j].end ? ++i : ++j;
  }
  return result;
}

template <int A, int B>
KeySet<A + B> set_union(const KeySet<A>& a, const KeySet<B>& b) {
  KeySet<A + B> result;
  result.exact = a.exact && b.exact;
  for (int i = 0, j = 0; i < a.count || j < b.count;) {
    const bool from_a = j == b.count || (i < a.count && a[i].begin <= b[j].begin);
    result.append(from_a ? a[i++] : b[j++]);
  }
  return result;
}

template <int A>
KeySet<A + 1> complement(const KeySet<A>& a, Index keys) {
  if (!a.exact) return KeySet<A + 1>::of({0, keys}, false);
  KeySet<A + 1> result;
  Index begin = 0;
  for (int i = 0; i < a.count; ++i) {
    result.append({begin, a[i].begin});
    begin = a[i].end;
  }
  result.append({begin, keys});
  return result;
}

/// body(first, last) for the runs of keys, within from .. to-1, that query i sees: `row` is what
/// the bound mask gives for the query. This is the one walk over visible keys.
template <class BoundMask, class Set, class Body>
EIGEN_ALWAYS_INLINE void for_each_visible_run(const BoundMask& mask, const Set& row, Index b,
                                              Index h, Index i, Index from, Index to,
                                              const Body& body) {
  for (int n = 0; n < row.count; ++n) {
    Index begin = std::max(row[n].begin, from);
    const Index end = std::min(row[n].end, to);
    if (row.exact) {
      if (begin < end) body(begin, end);
      continue;
    }
    for (Index j = begin; j <= end; ++j) {
      if (j < end && mask.allows(b, h, i, j)) continue;
      if (begin < j) body(begin, j);
      begin = j + 1;
    }
  }
}

/// body(key) for every one of them.
template <class BoundMask, class Set, class Body>
EIGEN_ALWAYS_INLINE void for_each_visible(const BoundMask& mask, const Set& row, Index b, Index h,
                                          Index i, Index from, Index to, const Body& body) {
  for_each_visible_run(mask, row, b, h, i, from, to, [&body](Index first, Index last) {
    for (Index j = first; j < last; ++j) body(j);
  });
}

template <class BoundMask>
bool sees_any(const BoundMask& mask, Index b, Index h, Index i, Index keys) {
  bool any = false;
  for_each_visible_run(mask, mask.row(b, h, i), b, h, i, Index(0), keys,
                       [&any](Index, Index) { any = true; });
  return any;
}

}  // namespace heed
