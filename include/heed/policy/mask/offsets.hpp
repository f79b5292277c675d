#pragma once

#include <initializer_list>
#include <limits>
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
namespace detail {

template <class Offsets>
constexpr void check_offsets() {
  static_assert(Integers<Offsets> && IntegerView<Offsets>::Rank == 1,
                "heed: causal and sliding_window take an Align, or integers of rank 1, one offset "
                "for each batch entry");
}

}  // namespace detail

/// A window around positions that each batch entry counts from an offset of its own.
template <class Kept>
struct OffsetWindow : MaskPolicy {
  const char* name;
  Kept offsets;
  Index left, right;

  OffsetWindow(const char* name_in, Kept kept, Index left_in, Index right_in)
      : name(name_in), offsets(std::forward<Kept>(kept)), left(left_in), right(right_in) {}
  void for_each_tensor(const auto& visit) const {
    visit(detail::integer_view(offsets), "the offsets of a mask");
  }
  auto bind(const Problem& problem) const {
    const auto view = detail::integer_view(offsets);
    if (view.shape[0] != problem.batch) {
      problem.refuse(name, " has ", view.shape[0], " offsets for a batch of ", problem.batch,
                     "; the scores are ", problem.score_shape());
    }
    const Index first = problem.first_entry(), last = first + problem.entries();
    for (Index b = first; b < last; ++b) {
      if (!std::in_range<Index>(view(b))) {
        problem.refuse(name, " has an offset in batch ", b, " that is no position: it is above ",
                       std::numeric_limits<Index>::max());
      }
    }
    return detail::BoundRange(
        [view, keys = problem.keys, l = left, r = right](Index b, Index, Index i) {
          return detail::window(static_cast<Index>(view(b)), i, l, r, keys);
        });
  }
};

/// Query i of batch entry b stands at position i + offsets[b], and sees keys from `left` before it
/// to `right` after it, both ends kept; -1 means no limit on that side. Key j stands at position j,
/// so that a position before the first key or behind the last sees what of its window there is, or
/// nothing. Takes the offsets, one for each batch entry, as valid_lens takes lengths; what is not a
/// temporary must outlive the mask. std::invalid_argument where their number is not the batch.
template <class Offsets>
  requires(!std::is_same_v<std::remove_cvref_t<Offsets>, Align>)
auto sliding_window(Index left, Index right, Offsets&& offsets) {
  detail::check_offsets<std::remove_cvref_t<Offsets>>();
  detail::check_window(left, right);
  return OffsetWindow<detail::Kept<Offsets&&>>("sliding_window", std::forward<Offsets>(offsets),
                                               left, right);
}
inline auto sliding_window(Index left, Index right, std::initializer_list<Index> offsets) {
  return sliding_window(left, right, std::vector<Index>(offsets));
}

/// No key after the query's own position, i + offsets[b]: where new tokens follow a cache whose
/// sequences differ in length, offsets are these lengths.
template <class Offsets>
  requires(!std::is_same_v<std::remove_cvref_t<Offsets>, Align>)
auto causal(Offsets&& offsets) {
  detail::check_offsets<std::remove_cvref_t<Offsets>>();
  return OffsetWindow<detail::Kept<Offsets&&>>("causal", std::forward<Offsets>(offsets), -1, 0);
}
inline auto causal(std::initializer_list<Index> offsets) {
  return causal(std::vector<Index>(offsets));
}

}  // namespace heed
