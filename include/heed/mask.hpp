#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <initializer_list>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/detail/key_set.hpp"
#include "heed/detail/problem.hpp"

namespace heed {

/// Where query i stands among the keys: bottom_right at i + keys - queries, so that the last query
/// sees every key (decoding); top_left at i.
enum class Align { bottom_right, top_left };

namespace detail {

/// Base of every mask. A mask has `bind(problem)`, which checks that it fits the shapes and gives
/// what answers for them:
///   row(b, h, i)            KeySet of what query i of query head h may see
///   allows(b, h, i, j)      the pair's own answer
struct MaskTag {};
struct BoundMaskTag {};

template <class T>
concept Mask = std::derived_from<std::remove_cvref_t<T>, MaskTag>;

template <class M>
using Bound = decltype(std::declval<const M&>().bind(std::declval<const Problem&>()));

/// Masks with one exact range of keys for each query.
template <class Range>
struct BoundRange : BoundMaskTag {
  Range range;

  explicit BoundRange(Range r) : range(std::move(r)) {}
  KeySet<1> row(Index b, Index h, Index i) const { return KeySet<1>::of(range(b, h, i)); }
  bool allows(Index b, Index h, Index i, Index j) const {
    const KeyRange r = range(b, h, i);
    return r.begin <= j && j < r.end;
  }
};

/// Masks that only know the answer for a pair.
template <class Allows>
struct BoundPairs : BoundMaskTag {
  Index keys;
  Allows predicate;

  BoundPairs(Index keys_in, Allows p) : keys(keys_in), predicate(std::move(p)) {}
  KeySet<1> row(Index, Index, Index) const { return KeySet<1>::of({0, keys}, false); }
  bool allows(Index b, Index h, Index i, Index j) const { return predicate(b, h, i, j); }
};

/// Integers of rank 1 or 2: a list, std::vector, Eigen vector, matrix or tensor. A vector of
/// Eigen's has rank 1. `kept` is the container (see Kept).
template <class T>
auto integer_view(const T& kept) {
  if constexpr (requires {
                  kept.data();
                  kept.size();
                  typename T::value_type;
                } &&
                !EigenDense<T> && !EigenTensorLike<T>) {
    using Integer = typename T::value_type;
    return View<const Integer, 1>{kept.data(), {static_cast<Index>(kept.size())}, {1}};
  } else if constexpr (EigenDense<T>) {
    const auto matrix = view(kept);
    using Integer = typename decltype(matrix)::Scalar;
    if constexpr (T::IsVectorAtCompileTime) {
      constexpr std::size_t axis = T::ColsAtCompileTime == 1 ? 0 : 1;
      return View<const Integer, 1>{matrix.data, {matrix.shape[axis]}, {matrix.strides[axis]}};
    } else {
      return View<const Integer, 2>(matrix);
    }
  } else {
    const auto tensor = view(kept);
    using Integer = typename decltype(tensor)::Scalar;
    return View<const Integer, decltype(tensor)::Rank>(tensor);
  }
}

template <class T>
using IntegerView = decltype(integer_view(std::declval<const T&>()));

template <class T>
concept Integers = requires(const T& x) {
  integer_view(x);
}
&&IntegerView<T>::Rank <= 2 && std::integral<typename IntegerView<T>::Scalar> &&
    !std::same_as<typename IntegerView<T>::Scalar, bool>;

/// (batch) repeated over an axis of stride 0, or (batch, n) as it is.
template <class Integer, int Rank>
View<Integer, 2> per_batch(const View<Integer, Rank>& x) {
  if constexpr (Rank == 1) {
    return {x.data, {x.shape[0], 1}, {x.strides[0], 0}};
  } else {
    return x;
  }
}

/// A matrix written as nested lists.
using NestedLists = std::initializer_list<std::initializer_list<Index>>;
inline Matrix<Index> matrix_of(const char* function, NestedLists rows) {
  const auto columns = rows.size() == 0 ? 0 : rows.begin()->size();
  Matrix<Index> result(static_cast<Index>(rows.size()), static_cast<Index>(columns));
  Index i = 0;
  for (const auto& row : rows) {
    if (row.size() != columns) fail(function, "rows of unequal length");
    Index j = 0;
    for (Index value : row) result(i, j++) = value;
    ++i;
  }
  return result;
}

}  // namespace detail

/// Every pair is allowed.
struct NoMask : detail::MaskTag {
  struct Bound : detail::BoundMaskTag {
    using HidesNothing = void;
    Index keys;

    explicit Bound(Index n) : keys(n) {}
    detail::KeySet<1> row(Index, Index, Index) const { return detail::KeySet<1>::of({0, keys}); }
    bool allows(Index, Index, Index, Index) const { return true; }
  };
  auto bind(const detail::Problem& problem) const { return Bound(problem.keys); }
};
inline NoMask no_mask() { return {}; }

template <class Kept>
struct ValidLens : detail::MaskTag {
  Kept lens;

  explicit ValidLens(Kept kept) : lens(std::forward<Kept>(kept)) {}
  auto bind(const detail::Problem& problem) const {
    auto view = detail::per_batch(detail::integer_view(lens));
    constexpr bool by_query = detail::IntegerView<std::remove_cvref_t<Kept>>::Rank == 2;
    if (view.shape[0] != problem.batch) {
      detail::fail(problem.function, "valid_lens has ", view.shape[0],
                   " rows (axis 0) for a batch of ", problem.batch, "; the scores are ",
                   problem.score_shape());
    }
    if (by_query && view.shape[1] != problem.queries && view.shape[1] != 1) {
      detail::fail(problem.function, "valid_lens ", view.shape, " has ", view.shape[1],
                   " lengths (axis 1) for ", problem.queries, " queries; the scores are ",
                   problem.score_shape());
    }
    for (Index b = 0; b < view.shape[0]; ++b) {
      for (Index i = 0; i < view.shape[1]; ++i) {
        if (std::cmp_less(view(b, i), 0)) {
          detail::fail(problem.function, "valid_lens holds a length of ",
                       static_cast<Index>(view(b, i)), " in batch ", b);
        }
      }
    }
    if (view.shape[1] == 1) view.strides[1] = 0;
    return detail::BoundRange([view, keys = problem.keys](Index b, Index, Index i) {
      const auto length = view(b, i);
      return detail::KeyRange{0, std::cmp_less(length, keys) ? static_cast<Index>(length) : keys};
    });
  }
};

/// Key j is allowed where j is less than the length, one for each batch entry or one for each
/// (batch, query). Lengths beyond the keys count as all of them. Takes a list, std::vector, or
/// Eigen vector, matrix or tensor of integers; what is not a temporary must outlive the mask.
/// std::invalid_argument where a length is negative or their number does not fit the batch.
template <class Lens>
auto valid_lens(Lens&& lens) {
  static_assert(detail::Integers<std::remove_cvref_t<Lens>>,
                "heed: valid_lens takes integers of rank 1 (batch) or 2 (batch, queries)");
  return ValidLens<detail::Kept<Lens&&>>(std::forward<Lens>(lens));
}
inline auto valid_lens(std::initializer_list<Index> lens) {
  return ValidLens<std::vector<Index>>(std::vector<Index>(lens));
}
inline auto valid_lens(detail::NestedLists lens) {
  return ValidLens<Matrix<Index>>(detail::matrix_of("valid_lens", lens));
}

/// Keys from `left` before the query's own position to `right` after it, both ends kept.
struct SlidingWindow : detail::MaskTag {
  Index left, right;
  Align align;

  SlidingWindow(Index left_in, Index right_in, Align align_in)
      : left(left_in), right(right_in), align(align_in) {}
  auto bind(const detail::Problem& problem) const {
    const Index keys = problem.keys;
    const Index offset = align == Align::bottom_right ? keys - problem.queries : 0;
    return detail::BoundRange([keys, offset, l = left, r = right](Index, Index, Index i) {
      const Index position = i + offset;
      return detail::KeyRange{l < 0 || l >= position ? 0 : position - l,
                              r < 0 || r >= keys - position ? keys : position + r + 1};
    });
  }
};

/// Query at position p (see Align) sees keys p - left .. p + right; -1 means no limit on that side.
inline SlidingWindow sliding_window(Index left, Index right, Align align = Align::bottom_right) {
  if (left < -1 || right < -1) {
    detail::fail("sliding_window", "left ", left, " and right ", right, " must be -1 or more");
  }
  return {left, right, align};
}

/// No key after the query's own position.
inline SlidingWindow causal(Align align = Align::bottom_right) { return {-1, 0, align}; }

struct Prefix : detail::MaskTag {
  Index length;

  explicit Prefix(Index n) : length(n) {}
  auto bind(const detail::Problem& problem) const {
    const Index end = std::min(length, problem.keys);
    return detail::BoundRange([end](Index, Index, Index) { return detail::KeyRange{0, end}; });
  }
};

/// The first n keys, for every query; `prefix(n) || causal()` is the mask of a prefix language
/// model.
inline Prefix prefix(Index n) {
  if (n < 0) detail::fail("prefix", "the length is ", n);
  return Prefix(n);
}

template <class KeptQueries, class KeptKeys>
struct Segments : detail::MaskTag {
  KeptQueries query_ids;
  KeptKeys key_ids;

  Segments(KeptQueries queries, KeptKeys keys)
      : query_ids(std::forward<KeptQueries>(queries)), key_ids(std::forward<KeptKeys>(keys)) {}

  template <class Query, class Key>
  struct Matcher : detail::BoundMaskTag {
    View<const Query, 2> queries;
    View<const Key, 2> keys;
    bool sorted = true;

    /// Documents lie one after the other as a rule, and then a document is one range. Sorted ids
    /// are searched; other ids are scanned, and may still turn out to be one range.
    detail::KeySet<1> row(Index b, Index, Index i) const {
      const auto id = static_cast<Index>(queries(b, i));
      const Index n = keys.shape[1];
      const auto key = [&](Index j) { return static_cast<Index>(keys(b, j)); };
      if (sorted) {
        const auto first_from = [&](auto reached) {
          Index low = 0, high = n;
          while (low < high) {
            const Index middle = low + (high - low) / 2;
            reached(key(middle)) ? high = middle : low = middle + 1;
          }
          return low;
        };
        return detail::KeySet<1>::of({first_from([id](Index k) { return k >= id; }),
                                      first_from([id](Index k) { return k > id; })});
      }
      Index first = n, last = 0, matches = 0;
      for (Index j = 0; j < n; ++j) {
        if (key(j) != id) continue;
        first = std::min(first, j);
        last = j + 1;
        ++matches;
      }
      return detail::KeySet<1>::of({first, last}, matches == last - first || matches == 0);
    }
    bool allows(Index b, Index, Index i, Index j) const {
      return static_cast<Index>(queries(b, i)) == static_cast<Index>(keys(b, j));
    }
  };

  auto bind(const detail::Problem& problem) const {
    const auto queries = fit(problem, "query", query_ids, problem.queries);
    const auto keys = fit(problem, "key", key_ids, problem.keys);
    Matcher<typename decltype(queries)::Scalar, typename decltype(keys)::Scalar> matcher;
    matcher.queries = queries;
    matcher.keys = keys;
    for (Index b = 0;
         b < (keys.strides[0] == 0 ? std::min<Index>(1, problem.batch) : problem.batch); ++b) {
      for (Index j = 1; j < problem.keys && matcher.sorted; ++j) {
        matcher.sorted = keys(b, j - 1) <= keys(b, j);
      }
    }
    return matcher;
  }

 private:
  template <class Ids>
  static auto fit(const detail::Problem& problem, const char* what, const Ids& ids, Index count) {
    const auto given = detail::integer_view(ids);
    auto view = detail::expand<2, 1>(given);
    if (view.shape[1] != count || (view.shape[0] != 1 && view.shape[0] != problem.batch)) {
      detail::fail(problem.function, "segments has ", what, " ids of shape ", given.shape, " for ",
                   count, " ", what, " positions; the scores are ", problem.score_shape());
    }
    if (view.shape[0] == 1) view.strides[0] = 0;
    return view;
  }
};

/// Pairs whose ids are equal: packed documents. Integers of rank 1 (shared by the batch) or 2
/// (batch, positions); what is not a temporary must outlive the mask.
template <class QueryIds, class KeyIds>
auto segments(QueryIds&& query_ids, KeyIds&& key_ids) {
  static_assert(detail::Integers<std::remove_cvref_t<QueryIds>> &&
                    detail::Integers<std::remove_cvref_t<KeyIds>>,
                "heed: segments takes integers of rank 1 (positions) or 2 (batch, positions)");
  return Segments<detail::Kept<QueryIds&&>, detail::Kept<KeyIds&&>>(
      std::forward<QueryIds>(query_ids), std::forward<KeyIds>(key_ids));
}
inline auto segments(std::initializer_list<Index> query_ids, std::initializer_list<Index> key_ids) {
  return segments(std::vector<Index>(query_ids), std::vector<Index>(key_ids));
}

template <class Kept>
struct Allow : detail::MaskTag {
  Kept allowed;

  explicit Allow(Kept kept) : allowed(std::forward<Kept>(kept)) {}
  auto bind(const detail::Problem& problem) const {
    const auto view = detail::broadcast_pairs(problem, "allow", allowed);
    return detail::BoundPairs(
        problem.keys, [view](Index b, Index h, Index i, Index j) { return view(b, h, i, j); });
  }
};

/// Pairs where the tensor of bool is true. Rank 2 is (queries, keys), 3 adds batch in front, 4 is
/// (batch, heads, queries, keys); an axis of 1 is repeated. It must outlive the mask unless it is a
/// temporary.
template <class T>
auto allow(T&& allowed) {
  static_assert(std::is_same_v<detail::ScalarOf<std::remove_reference_t<T>>, bool>,
                "heed: allow takes a tensor of bool (true = may attend); numbers belong in bias");
  static_assert(detail::rank_of<std::remove_reference_t<T>> >= 2,
                "heed: allow takes a tensor of rank 2 to 4");
  return Allow<detail::Kept<T&&>>(std::forward<T>(allowed));
}

template <class F>
struct MaskIf : detail::MaskTag {
  F predicate;

  explicit MaskIf(F f) : predicate(std::move(f)) {}
  auto bind(const detail::Problem& problem) const {
    return detail::BoundPairs(problem.keys, [f = predicate](Index b, Index h, Index i, Index j) {
      return static_cast<bool>(f(b, h, i, j));
    });
  }
};

/// Pairs where f(batch, head, query, key) is true. f is called from several threads at once where
/// a pool is given, and at most for the pairs that the rest of an && lets through.
template <class F>
auto mask_if(F f) {
  static_assert(
      std::is_invocable_r_v<bool, const F&, Index, Index, Index, Index>,
      "heed: mask_if takes a function bool(Index batch, Index head, Index query, Index key)");
  return MaskIf<F>(std::move(f));
}

struct Both {
  static auto row(const auto& a, const auto& b) { return detail::intersection(a, b); }
  static bool allows(const auto& a, const auto& b, Index n, Index h, Index i, Index j) {
    return a.allows(n, h, i, j) && b.allows(n, h, i, j);
  }
};
struct Either {
  static auto row(const auto& a, const auto& b) { return detail::set_union(a, b); }
  static bool allows(const auto& a, const auto& b, Index n, Index h, Index i, Index j) {
    return a.allows(n, h, i, j) || b.allows(n, h, i, j);
  }
};

/// Two masks as one, by `How` of Both and Either.
template <class A, class B, class How>
struct CombinedMask : detail::MaskTag {
  A a;
  B b;

  CombinedMask(A a_in, B b_in) : a(std::move(a_in)), b(std::move(b_in)) {}
  struct Combined : detail::BoundMaskTag {
    detail::Bound<A> a;
    detail::Bound<B> b;

    Combined(detail::Bound<A> a_in, detail::Bound<B> b_in)
        : a(std::move(a_in)), b(std::move(b_in)) {}
    auto row(Index n, Index h, Index i) const { return How::row(a.row(n, h, i), b.row(n, h, i)); }
    bool allows(Index n, Index h, Index i, Index j) const { return How::allows(a, b, n, h, i, j); }
  };
  auto bind(const detail::Problem& problem) const {
    return Combined(a.bind(problem), b.bind(problem));
  }
};

template <class A>
struct NotMask : detail::MaskTag {
  A a;

  explicit NotMask(A a_in) : a(std::move(a_in)) {}
  struct Neither : detail::BoundMaskTag {
    detail::Bound<A> a;
    Index keys;

    Neither(detail::Bound<A> a_in, Index keys_in) : a(std::move(a_in)), keys(keys_in) {}
    auto row(Index n, Index h, Index i) const { return detail::complement(a.row(n, h, i), keys); }
    bool allows(Index n, Index h, Index i, Index j) const { return !a.allows(n, h, i, j); }
  };
  auto bind(const detail::Problem& problem) const { return Neither(a.bind(problem), problem.keys); }
};

/// Pairs that both masks allow.
template <class A, class B>
requires(detail::Mask<A>&& detail::Mask<B>) auto operator&&(A a, B b) {
  return CombinedMask<A, B, Both>(std::move(a), std::move(b));
}

/// Pairs that either mask allows.
template <class A, class B>
requires(detail::Mask<A>&& detail::Mask<B>) auto operator||(A a, B b) {
  return CombinedMask<A, B, Either>(std::move(a), std::move(b));
}

/// Pairs that the mask hides.
template <class A>
requires(detail::Mask<A>) auto operator!(A a) { return NotMask<A>(std::move(a)); }

}  // namespace heed
