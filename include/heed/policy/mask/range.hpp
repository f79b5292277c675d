#pragma once

#include <algorithm>
#include <limits>
#include <utility>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/key_set.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

/// Where query i stands among the keys: bottom_right at i + keys - queries, so that the last query
/// sees every key (decoding); top_left at i.
enum class Align { bottom_right, top_left };

namespace detail {

/// Masks with one exact range of keys for each query.
template <class Range>
struct BoundRange {
  Range range;

  explicit BoundRange(Range r) : range(std::move(r)) {}
  KeySet<1> row(Index b, Index h, Index i) const { return KeySet<1>::of(range(b, h, i)); }
  bool allows(Index b, Index h, Index i, Index j) const {
    const KeyRange r = range(b, h, i);
    return r.begin <= j && j < r.end;
  }
};

/// What of the keys offset + i - left .. offset + i + right there is. No step overflows: a sum that
/// would has left the keys already, whatever is added to it.
inline KeyRange window(Index offset, Index i, Index left, Index right, Index keys) {
  constexpr Index least = std::numeric_limits<Index>::min(),
                  most = std::numeric_limits<Index>::max();
  KeyRange seen{0, keys};
  if (left >= 0) {
    const Index first = offset < least + left ? least : offset - left;
    seen.begin = first >= keys - i ? keys : std::max<Index>(first + i, 0);
  }
  if (right >= 0) {
    const Index last = offset > most - right ? most : offset + right;
    seen.end = last >= keys - i - 1 ? keys : std::max<Index>(last + i + 1, 0);
  }
  return seen;
}

inline void check_window(Index left, Index right) {
  if (left < -1 || right < -1) {
    fail("sliding_window", "left ", left, " and right ", right, " must be -1 or more");
  }
}

}  // namespace detail

/// Every pair is allowed.
struct NoMask : MaskPolicy {
  struct Bound {
    static constexpr MaskTraits traits{.hides_nothing = true};
    Index keys;

    explicit Bound(Index n) : keys(n) {}
    KeySet<1> row(Index, Index, Index) const { return KeySet<1>::of({0, keys}); }
    bool allows(Index, Index, Index, Index) const { return true; }
  };
  auto bind(const Problem& problem) const { return Bound(problem.keys); }
};
inline NoMask no_mask() { return {}; }

/// Keys from `left` before the query's own position to `right` after it, both ends kept.
struct SlidingWindow : MaskPolicy {
  Index left, right;
  Align align;

  SlidingWindow(Index left_in, Index right_in, Align align_in)
      : left(left_in), right(right_in), align(align_in) {}
  auto bind(const Problem& problem) const {
    const Index keys = problem.keys;
    const Index offset = align == Align::bottom_right ? keys - problem.queries : 0;
    return detail::BoundRange([keys, offset, l = left, r = right](Index, Index, Index i) {
      return detail::window(offset, i, l, r, keys);
    });
  }
};

/// Query at position p (see Align) sees keys p - left .. p + right; -1 means no limit on that side.
inline SlidingWindow sliding_window(Index left, Index right, Align align = Align::bottom_right) {
  detail::check_window(left, right);
  return {left, right, align};
}

/// No key after the query's own position.
inline SlidingWindow causal(Align align = Align::bottom_right) { return {-1, 0, align}; }

struct Prefix : MaskPolicy {
  Index length;

  explicit Prefix(Index n) : length(n) {}
  auto bind(const Problem& problem) const {
    const Index end = std::min(length, problem.keys);
    return detail::BoundRange([end](Index, Index, Index) { return KeyRange{0, end}; });
  }
};

/// The first n keys, for every query; `prefix(n) || causal()` is the mask of a prefix language
/// model.
inline Prefix prefix(Index n) {
  if (n < 0) detail::fail("prefix", "the length is ", n);
  return Prefix(n);
}

}  // namespace heed
