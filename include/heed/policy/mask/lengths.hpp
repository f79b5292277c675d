#pragma once

#include <initializer_list>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/core/error.hpp"
#include "heed/core/integers.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/key_set.hpp"
#include "heed/policy/mask/range.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

template <class Kept>
struct ValidLens : MaskPolicy {
  Kept lens;

  explicit ValidLens(Kept kept) : lens(std::forward<Kept>(kept)) {}
  void for_each_tensor(const auto& visit) const {
    visit(detail::integer_view(lens), "the lengths of valid_lens");
  }
  auto bind(const Problem& problem) const {
    auto view = detail::per_batch(detail::integer_view(lens));
    constexpr bool by_query = detail::IntegerView<std::remove_cvref_t<Kept>>::Rank == 2;
    if (view.shape[0] != problem.batch) {
      problem.refuse("valid_lens has ", view.shape[0], " rows (axis 0) for a batch of ",
                     problem.batch, "; the scores are ", problem.score_shape());
    }
    if (by_query && !problem.serves(view.shape[1], problem.queries) && view.shape[1] != 1) {
      problem.refuse("valid_lens ", view.shape, " has ", view.shape[1], " lengths (axis 1) for ",
                     problem.queries, " queries; the scores are ", problem.score_shape());
    }
    const Index first = problem.first_entry(), last = first + problem.entries();
    for (Index b = first; b < last; ++b) {
      for (Index i = 0; i < view.shape[1]; ++i) {
        if (std::cmp_less(view(b, i), 0)) {
          problem.refuse("valid_lens holds a length of ", static_cast<Index>(view(b, i)),
                         " in batch ", b);
        }
      }
    }
    if (view.shape[1] == 1) view.strides[1] = 0;
    return detail::BoundRange([view, keys = problem.keys](Index b, Index, Index i) {
      const auto length = view(b, i);
      return KeyRange{0, std::cmp_less(length, keys) ? static_cast<Index>(length) : keys};
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

}  // namespace heed
