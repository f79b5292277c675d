#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "fuzz/draw.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/key_set.hpp"

namespace heed::fuzz {

using Pairs = std::function<bool(Index b, Index h, Index i, Index j)>;

/// The set in fewer ranges; where these are too few, what lies between the first and the last.
template <int Capacity, int N>
KeySet<Capacity> narrowed(const KeySet<N>& set) {
  if (set.count > Capacity) {
    return KeySet<Capacity>::of({set[0].begin, set[set.count - 1].end}, false);
  }
  KeySet<Capacity> result;
  for (int n = 0; n < set.count; ++n) result.append(set[n]);
  result.exact = set.exact;
  return result;
}

/// Any mask, of one type, so that the engines are compiled once for all of them.
template <int Capacity>
struct AnyMask : MaskPolicy {
  struct Bound {
    Pairs pairs;
    std::function<KeySet<Capacity>(Index, Index, Index)> rows;
    KeySet<Capacity> row(Index b, Index h, Index i) const { return rows(b, h, i); }
    bool allows(Index b, Index h, Index i, Index j) const { return pairs(b, h, i, j); }
  };
  std::function<Bound(const Problem&)> make;

  Bound bind(const Problem& problem) const { return make(problem); }

  template <class M>
  static AnyMask of(M mask) {
    AnyMask any;
    any.make = [mask = std::make_shared<const M>(std::move(mask))](const Problem& problem) {
      using OfMask = detail::BoundMaskOf<M>;
      const auto bound = std::make_shared<const OfMask>(detail::bind_mask(*mask, problem));
      return Bound{
          [bound](Index b, Index h, Index i, Index j) { return bound->allows(b, h, i, j); },
          [bound](Index b, Index h, Index i) { return narrowed<Capacity>(bound->row(b, h, i)); }};
    };
    return any;
  }
};

/// The mask, and what it is by its words.
template <int Capacity>
struct MaskDraw {
  AnyMask<Capacity> mask;
  Pairs allowed;
};

/// What masks go by. Over ragged batches and caches, sequences have lengths of their own.
struct Positions {
  Index batch, heads;
  std::vector<Index> queries, keys;  // of each batch entry

  Positions(Index b, Index h, Index q, Index k)
      : batch(b),
        heads(h),
        queries(static_cast<std::size_t>(b), q),
        keys(static_cast<std::size_t>(b), k),
        most_queries(q),
        most_keys(k) {}
  Positions(Index h, std::vector<Index> q, std::vector<Index> k)
      : batch(static_cast<Index>(q.size())), heads(h), queries(std::move(q)), keys(std::move(k)) {
    for (const Index n : queries) most_queries = std::max(most_queries, n);
    for (const Index n : keys) most_keys = std::max(most_keys, n);
  }
  Index most_queries = 0, most_keys = 0;
};

/// An expression of masks, no deeper than `depth`.
template <int Capacity>
MaskDraw<Capacity> draw_mask(Draw& draw, const Positions& positions, int depth = 2);

extern template MaskDraw<1> draw_mask<1>(Draw&, const Positions&, int);
extern template MaskDraw<3> draw_mask<3>(Draw&, const Positions&, int);

}  // namespace heed::fuzz
