#pragma once

#include <algorithm>
#include <array>

#include "heed/attention.hpp"
#include "heed/mask.hpp"
#include "heed/modifier.hpp"
#include "heed/score.hpp"
#include "support.hpp"

/// One call under a window and a score whose parts do not commute, whole or in parts.
namespace heed::test {

inline constexpr Index batch = 2, heads = 4, key_heads = 2, queries = 37;

/// One call in numbers: query i of batch entry b stands at i + offset[b], and sees what lies from
/// `left` before it to `right` after it; if `pairs`, without every fifth pair.
struct Call {
  Reference query, key, value, added;  // added: a bias of (batch, heads, queries, keys)
  double scale = -.7;
  Index left = -1, right = 0;
  std::array<Index, 2> offset{};
  bool pairs = false;
  bool (*hides)(Index i, Index j) = nullptr;  // more pairs

  Call(Index keys, Index width, Index of_queries = queries)
      : query(random({batch, heads, of_queries, 16}, 1)),
        key(random({batch, key_heads, keys, 16}, 2)),
        value(random({batch, key_heads, keys, width}, 3)),
        added(random({batch, heads, of_queries, keys}, 4, 2)),
        offset{keys - of_queries, keys - of_queries - 2} {}

  Index count() const { return query.dimension(2); }
  Index keys() const { return key.dimension(2); }
  KeyRange seen(Index b, Index i) const {
    const Index at = i + offset[static_cast<std::size_t>(b)];
    return {left < 0 ? 0 : std::clamp<Index>(at - left, 0, keys()),
            right < 0 ? keys() : std::clamp<Index>(at + right + 1, 0, keys())};
  }
  bool shows(Index b, Index h, Index i, Index j) const {
    const KeyRange range = seen(b, i);
    return range.begin <= j && j < range.end && !(pairs && (b + 2 * h + 3 * i + j) % 5 == 0) &&
           !(hides && hides(i, j));
  }
  bool blind(Index b, Index h, Index i) const {
    for (Index j = 0; j < keys(); ++j) {
      if (shows(b, h, i, j)) return false;
    }
    return true;
  }
};

/// What a call shows, to its queries and keys from these ones on.
struct Shown : MaskPolicy {
  const Call& call;
  Index query, key;
  Shown(const Call& of, Index first_query, Index first_key)
      : call(of), query(first_query), key(first_key) {}

  struct Bound {
    const Shown* shown;
    Index keys;
    bool allows(Index b, Index h, Index i, Index j) const {
      return shown->call.shows(b, h, shown->query + i, shown->key + j);
    }
    KeySet<1> row(Index b, Index, Index i) const {
      const KeyRange range = shown->call.seen(b, shown->query + i);
      return KeySet<1>::of({std::clamp<Index>(range.begin - shown->key, 0, keys),
                            std::clamp<Index>(range.end - shown->key, 0, keys)},
                           !shown->call.pairs && !shown->call.hides);
    }
  };
  Bound bind(const Problem& problem) const { return {this, problem.keys}; }
};

inline Reference columns(const Reference& x, Index first, Index last) {
  Shape shape = x.dimensions();
  shape[3] = last - first;
  return generate(shape, [&](Index b, Index h, Index i, Index j) { return x(b, h, i, first + j); });
}

/// No two of its parts commute; (j - i) / 2 is a half for every second pair.
template <class Tensor>
auto score_of(double scale, const Tensor& added, Index first_query, Index first_key) {
  return dot_product(scale) | bias(added) | softcap(2) |
         score_mod([shift = static_cast<float>(first_key - first_query)](auto s, auto, auto h,
                                                                         auto i, auto j) {
           return s * (h + 1.F) + (j - i + shift) / 2 * .0625F;
         });
}

/// (batch, heads, n, dim) as tokens (batch * n, heads, dim).
inline Tensor<float, 3> tokens(const Reference& x) {
  Tensor<float, 3> result(x.dimension(0) * x.dimension(2), x.dimension(1), x.dimension(3));
  for_each_index(x.dimensions(), [&](Index b, Index h, Index i, Index d) {
    result(b * x.dimension(2) + i, h, d) = static_cast<float>(x(b, h, i, d));
  });
  return result;
}

/// The inverse.
inline Reference apart(const Tensor<float, 3>& x) {
  const Index n = x.dimension(0) / batch;
  return generate({batch, x.dimension(1), n, x.dimension(2)},
                  [&](Index b, Index h, Index i, Index d) { return number(x(b * n + i, h, d)); });
}

}  // namespace heed::test
