#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/simd/lanes.hpp"

namespace heed {

/// The extents of one call, against which scores, modifiers and masks check themselves.
struct Problem {
  const char* function;  ///< the public function that the user called, for messages
  Index batch, heads, kv_heads, queries, keys;
  Index query_dim, key_dim, value_dim;
  std::size_t rank = 4;  ///< of the user's tensors
  /// The sequences of the batch differ in length: queries and keys are those of the longest, or
  /// those of `sequence`. A tensor over positions is as long as the longest, or longer.
  bool ragged = false;
  Index sequence = -1;  ///< the one batch entry that it is about; -1: all
  /// Where somebody else has the other queries of the sequences, a tensor over pairs may have rows
  /// for `own_queries` of them alone: that of query i is i - row_shift. -1: nobody has.
  Index own_queries = -1, row_shift = 0;

  /// Batch entries that it is about: first_entry() .. first_entry() + entries()-1.
  Index first_entry() const { return sequence < 0 ? 0 : sequence; }
  Index entries() const { return sequence < 0 ? batch : 1; }
  /// The head of keys that a head of queries reads.
  Index kv_head(Index head) const {
    return heads == kv_heads ? head : head / (heads / kv_heads);  // mostly without a division
  }
  /// Whether `extent` numbers serve `positions` queries or keys.
  bool serves(Index extent, Index positions) const {
    return extent == positions || (ragged && extent > positions);
  }
  /// Makes a tensor over pairs that has the own rows alone go by the index of all queries.
  template <class Element>
  void index_by_query(View<Element, 4>& pairs) const {
    if (pairs.shape[2] == own_queries) pairs.data -= row_shift * pairs.strides[2];
  }

  std::array<Index, 4> score_shape() const { return {batch, heads, queries, keys}; }
  /// A shape as the user sees it.
  struct UserShape {
    std::array<Index, 4> shape;
    std::size_t rank;
    operator detail::Part() const { return {shape.data(), rank}; }
  };
  UserShape query_shape() const { return user_shape({batch, heads, queries, query_dim}); }
  UserShape key_shape() const { return user_shape({batch, kv_heads, keys, key_dim}); }

  /// Throws std::invalid_argument: the function's name, then the parts (text, numbers, shapes).
  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    detail::fail(function, parts...);
  }

 private:
  UserShape user_shape(const std::array<Index, 4>& shape) const {
    if (rank == 2) return {{shape[2], shape[3]}, rank};
    if (rank == 3) return {{shape[0], shape[2], shape[3]}, rank};
    return {shape, rank};
  }
};

/// Refuses queries and keys of different widths, for scores that compare them feature by feature.
inline void check_widths_agree(const Problem& problem, const char* score) {
  if (problem.query_dim != problem.key_dim) {
    problem.refuse(score, " needs queries and keys of one width, got ", problem.query_dim, " and ",
                   problem.key_dim, " features (last axis); query is ", problem.query_shape(),
                   ", key is ", problem.key_shape());
  }
}

/// A parameter in the number type of the call. What is not finite there is refused: it would turn
/// visible scores into NaN.
template <class Number>
Number parameter_as(const Problem& problem, const char* what, double x) {
  const auto result = static_cast<Number>(x);
  if constexpr (std::is_floating_point_v<Number>) {
    if (!std::isfinite(result)) {
      problem.refuse(what, " is ", x, ", which is not finite in numbers of up to ",
                     static_cast<double>(std::numeric_limits<Number>::max()));
    }
  } else if (!std::isfinite(x)) {
    problem.refuse(what, " is ", x);
  }
  return result;
}

/// A tensor of rank 2 (queries, keys), 3 (batch in front) or 4 (batch, heads, queries, keys) over
/// the scores; an axis of extent 1 gets stride 0. Over a ragged batch, queries and keys are counted
/// within each sequence, and may be more than the longest has.
template <class T>
auto broadcast_pairs(const Problem& problem, const char* what, const T& tensor) {
  const auto given = view(tensor);
  auto result = detail::expand<4, 2>(given);
  const auto scores = problem.score_shape();
  for (std::size_t axis = 0; axis < 4; ++axis) {
    if (result.shape[axis] == 1) {
      result.strides[axis] = 0;
    } else if (axis < 2 ? result.shape[axis] != scores[axis]
                        : !problem.serves(result.shape[axis], scores[axis]) &&
                              !(axis == 2 && result.shape[axis] == problem.own_queries)) {
      constexpr std::array<const char*, 4> names{"batch", "heads", "queries", "keys"};
      problem.refuse(what, " of shape ", given.shape, " does not broadcast over the ", names[axis],
                     " of the scores ", scores);
    }
  }
  problem.index_by_query(result);
  return result;
}

}  // namespace heed
