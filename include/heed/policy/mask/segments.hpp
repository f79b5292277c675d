#pragma once

#include <algorithm>
#include <initializer_list>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/core/error.hpp"
#include "heed/core/integers.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/key_set.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

template <class KeptQueries, class KeptKeys>
struct Segments : MaskPolicy {
  KeptQueries query_ids;
  KeptKeys key_ids;

  Segments(KeptQueries queries, KeptKeys keys)
      : query_ids(std::forward<KeptQueries>(queries)), key_ids(std::forward<KeptKeys>(keys)) {}

  void for_each_tensor(const auto& visit) const {
    visit(detail::integer_view(query_ids), "the query ids of segments");
    visit(detail::integer_view(key_ids), "the key ids of segments");
  }
  template <class Query, class Key>
  struct Matcher {
    View<const Query, 2> queries;
    View<const Key, 2> keys;
    bool sorted = true;

    /// Documents lie one after the other as a rule, and then a document is one range. Sorted ids
    /// are searched; other ids are scanned, and may still turn out to be one range.
    KeySet<1> row(Index b, Index, Index i) const {
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
        return KeySet<1>::of({first_from([id](Index k) { return k >= id; }),
                              first_from([id](Index k) { return k > id; })});
      }
      Index first = n, last = 0, matches = 0;
      for (Index j = 0; j < n; ++j) {
        if (key(j) != id) continue;
        first = std::min(first, j);
        last = j + 1;
        ++matches;
      }
      return KeySet<1>::of({first, last}, matches == last - first || matches == 0);
    }
    bool allows(Index b, Index, Index i, Index j) const {
      return static_cast<Index>(queries(b, i)) == static_cast<Index>(keys(b, j));
    }
  };

  auto bind(const Problem& problem) const {
    const auto queries = fit(problem, "query", query_ids, problem.queries);
    const auto keys = fit(problem, "key", key_ids, problem.keys);
    Matcher<typename decltype(queries)::Scalar, typename decltype(keys)::Scalar> matcher;
    matcher.queries = queries;
    matcher.keys = keys;
    const Index first = problem.first_entry(), entries = problem.entries();
    const Index last = first + (keys.strides[0] == 0 ? std::min<Index>(1, entries) : entries);
    for (Index b = first; b < last; ++b) {
      for (Index j = 1; j < problem.keys && matcher.sorted; ++j) {
        matcher.sorted = keys(b, j - 1) <= keys(b, j);
      }
    }
    return matcher;
  }

 private:
  template <class Ids>
  static auto fit(const Problem& problem, const char* what, const Ids& ids, Index count) {
    const auto given = detail::integer_view(ids);
    auto view = detail::expand<2, 1>(given);
    if (!problem.serves(view.shape[1], count) ||
        (view.shape[0] != 1 && view.shape[0] != problem.batch)) {
      problem.refuse("segments has ", what, " ids of shape ", given.shape, " for ", count, " ",
                     what, " positions; the scores are ", problem.score_shape());
    }
    if (view.shape[0] == 1) view.strides[0] = 0;
    view.shape[1] = count;
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

}  // namespace heed
