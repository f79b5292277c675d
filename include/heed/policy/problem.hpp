#pragma once

#include <array>
#include <cstddef>
#include <string>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"

namespace heed::detail {

/// The extents of one call, against which scores and masks check themselves.
struct Problem {
  const char* function;  // the public function that the user called, for messages
  Index batch, heads, kv_heads, queries, keys;
  Index query_dim, key_dim, value_dim;
  std::size_t rank = 4;  // of the user's tensors

  std::array<Index, 4> score_shape() const { return {batch, heads, queries, keys}; }
  std::string query_shape() const { return user_shape({batch, heads, queries, query_dim}); }
  std::string key_shape() const { return user_shape({batch, kv_heads, keys, key_dim}); }

 private:
  std::string user_shape(const std::array<Index, 4>& shape) const {
    if (rank == 2) return text(std::array<Index, 2>{shape[2], shape[3]});
    if (rank == 3) return text(std::array<Index, 3>{shape[0], shape[2], shape[3]});
    return text(shape);
  }
};

/// Refuses queries and keys of different widths, for scores that compare them feature by feature.
inline void check_widths_agree(const Problem& problem, const char* score) {
  if (problem.query_dim != problem.key_dim) {
    fail(problem.function, score, " needs queries and keys of one width, got ", problem.query_dim,
         " and ", problem.key_dim, " features (last axis); query is ", problem.query_shape(),
         ", key is ", problem.key_shape());
  }
}

/// A tensor of rank 2 (queries, keys), 3 (batch in front) or 4 (batch, heads, queries, keys) over
/// the scores; an axis of extent 1 gets stride 0.
template <class T>
auto broadcast_pairs(const Problem& problem, const char* what, const T& tensor) {
  const auto given = view(tensor);
  auto result = expand<4, 2>(given);
  const auto scores = problem.score_shape();
  for (std::size_t axis = 0; axis < 4; ++axis) {
    if (result.shape[axis] == 1) {
      result.strides[axis] = 0;
    } else if (result.shape[axis] != scores[axis]) {
      constexpr std::array<const char*, 4> names{"batch", "heads", "queries", "keys"};
      fail(problem.function, what, " of shape ", given.shape, " does not broadcast over the ",
           names[axis], " of the scores ", scores);
    }
  }
  return result;
}

}  // namespace heed::detail
