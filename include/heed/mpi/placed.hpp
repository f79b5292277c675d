#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/core/unit.hpp"
#include "heed/core/view.hpp"
#include "heed/engine/dispatch.hpp"
#include "heed/mpi/layout.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/key_set.hpp"
#include "heed/policy/problem.hpp"
#include "heed/simd/real_index.hpp"

/// Scores and masks that are bound to whole sequences, for a chunk of the queries and a chunk of
/// the keys, which engines count from 0.
namespace heed::detail {

/// Where a chunk of the queries and one of the keys begin, and what they have.
struct PartsPlace {
  Index query = 0, key = 0, queries = 0, keys = 0;
};

/// A modifier that adds a tensor has that of the place as well.
template <class Modifier, bool adds = modifier_traits<Modifier>.adds_tensor>
struct PlacedTensor : Modifier {
  explicit PlacedTensor(Modifier&& m) : Modifier(std::move(m)) {}
  void turn(const PartsPlace&) {}
};
template <class Modifier>
struct PlacedTensor<Modifier, true> : Modifier {
  decltype(Modifier::added) added{};

  explicit PlacedTensor(Modifier&& m) : Modifier(std::move(m)) {}
  void turn(const PartsPlace& to) {
    added = Modifier::added;
    added.data += to.query * added.strides[2] + to.key * added.strides[3];
    added.shape[2] = to.queries;
    added.shape[3] = to.keys;
  }
};

/// A bound modifier of the pairs at a place. A sink does not count: it joins what all chunks of
/// keys give, once.
template <class Number, class Modifier>
struct PlacedModifier : PlacedTensor<Modifier> {
  using Whole = Modifier;
  static constexpr ModifierTraits traits = [] {
    ModifierTraits result = modifier_traits<Modifier>;
    result.is_sink = false;
    return result;
  }();
  PartsPlace place;

  explicit PlacedModifier(Modifier&& m) : PlacedTensor<Modifier>(std::move(m)) {}
  void turn(const PartsPlace& to) {
    place = to;
    PlacedTensor<Modifier>::turn(to);
  }

  template <class T, class I>
  EIGEN_ALWAYS_INLINE T operator()(const T& score, Index b, Index h, const I& i, Index j) const {
    const Modifier& whole = *this;
    const auto real = [](Index n) { return RealIndex<Number>{n}; };
    const auto key = real(j + place.key);
    if constexpr (is_lanes<I>) {
      return T(whole(score, real(b), real(h), i + I(static_cast<Number>(place.query)), key));
    } else {
      return T(whole(score, real(b), real(h), real(static_cast<Index>(i) + place.query), key));
    }
  }
  void add_gradient(const PairTile<Number>& tile, Number* partial) const {
    PairTile<Number> there = tile;
    there.query += place.query;
    there.key += place.key;
    Modifier::add_gradient(there, partial);
  }
};

template <class Number, class Unit, class Similarity, class... Modifiers>
auto placed(BoundScore<Unit, Similarity, Modifiers...>&& score) {
  return std::apply(
      [&](auto&... modifier) {
        return BoundScore<Unit, Similarity, PlacedModifier<Number, Modifiers>...>{
            std::move(score.similarity),
            {PlacedModifier<Number, Modifiers>(std::move(modifier))...}};
      },
      score.modifiers);
}

/// body(bound) for a bound score and its modifiers.
void for_each_bound(auto& score, const auto& body) {
  body(score.similarity);
  std::apply([&](auto&... modifier) { (body(modifier), ...); }, score.modifiers);
}

/// A bound mask of the pairs at a place. What it gives for each query is asked for once and kept.
template <class Bound>
struct PlacedMask {
  using Set = KeySetOf<Bound>;
  static constexpr MaskTraits traits = mask_traits<Bound>;
  Bound whole;
  PartsPlace place;
  Index heads;
  std::vector<Set> rows;  // [batch][head][query]; none of a mask that hides nothing

  PlacedMask(Bound&& mask, const Problem& problem, const PartsPlace& at)
      : whole(std::move(mask)), place(at), heads(problem.heads) {
    if constexpr (!traits.hides_nothing) {
      rows.reserve(static_cast<std::size_t>(problem.batch * heads * place.queries));
      for (Index b = 0; b < problem.batch; ++b) {
        for (Index h = 0; h < heads; ++h) {
          for (Index i = 0; i < place.queries; ++i)
            rows.push_back(whole.row(b, h, i + place.query));
        }
      }
    }
  }

  Set row(Index b, Index h, Index i) const {
    if constexpr (traits.hides_nothing) {
      return Set::of({0, place.keys});
    } else {
      const Set& seen = rows[static_cast<std::size_t>((b * heads + h) * place.queries + i)];
      Set part;
      part.exact = seen.exact;
      for (int n = 0; n < seen.count; ++n) {
        part.append({std::max<Index>(seen[n].begin - place.key, 0),
                     std::min(seen[n].end - place.key, place.keys)});
      }
      return part;
    }
  }
  bool allows(Index b, Index h, Index i, Index j) const {
    return whole.allows(b, h, i + place.query, j + place.key);
  }

  /// Sets seen[n] for chunks of keys of which some query sees, or may see, a key.
  void mark_seen(const Chunks& keys, std::vector<char>& seen) const {
    if constexpr (traits.hides_nothing) {
      std::fill(seen.begin(), seen.end(), char(keys.rows > 0));
    } else {
      for (const Set& set : rows) {
        for (int n = 0; n < set.count; ++n) {
          const Index last = std::min(set[n].end, keys.total());
          for (Index c = set[n].begin / keys.rows; c * keys.rows < last; ++c) {
            seen[static_cast<std::size_t>(c)] = 1;
          }
        }
      }
    }
  }
};

/// The policies of a call for one chunk of a rank's queries.
template <class Number, class Unit, class S, class M>
struct ChunkPolicies {
  using Definition = decltype(placed<Number>(
      bind_score<Number, NaturalUnit>(std::declval<const S&>(), std::declval<const Problem&>())));
  using Score = decltype(placed<Number>(
      bind_score<Number, Unit>(std::declval<const S&>(), std::declval<const Problem&>())));
  static constexpr bool one_unit = std::is_same_v<Definition, Score>;

  Definition definition;
  std::optional<Score> in_unit;  // where that is another
  PlacedMask<BoundMaskOf<M>> mask;
  std::vector<char> seen;  // which chunks of keys a query may see

  /// `whole`: of all queries and keys, with the shift of the chunk's rows.
  ChunkPolicies(const S& score, const M& of_call, const Problem& whole, const PartsPlace& place,
                const Chunks& keys)
      : definition(placed<Number>(bind_score<Number, NaturalUnit>(score, whole))),
        mask(bind_mask(of_call, whole), whole, place),
        seen(static_cast<std::size_t>(keys.count()), 0) {
    if constexpr (!one_unit)
      in_unit.emplace(placed<Number>(bind_score<Number, Unit>(score, whole)));
    if (keys.rows > 0) mask.mark_seen(keys, seen);
  }

  const Score& score() const {
    if constexpr (one_unit) {
      return definition;
    } else {
      return *in_unit;
    }
  }

  /// Goes to keys from `key` on.
  void turn(Index key) {
    mask.place.key = key;
    const auto go = [this](auto& bound) {
      if constexpr (requires { bound.turn(mask.place); }) bound.turn(mask.place);
    };
    for_each_bound(definition, go);
    if constexpr (!one_unit) for_each_bound(*in_unit, go);
  }
};

}  // namespace heed::detail
