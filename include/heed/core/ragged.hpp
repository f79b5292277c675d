#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/core/error.hpp"
#include "heed/core/integers.hpp"
#include "heed/core/view.hpp"

namespace heed {

/// Sequences one after another; see ragged(). `Like` is the type of the tensor.
template <class Like_, class KeptTensor, class KeptOffsets>
struct Ragged {
  using Like = Like_;
  KeptTensor tensor;
  KeptOffsets offsets;

  Ragged(KeptTensor t, KeptOffsets o)
      : tensor(std::forward<KeptTensor>(t)), offsets(std::forward<KeptOffsets>(o)) {}
};

namespace detail {

/// A View of a tensor with a name, which may be written to; a temporary is kept by value.
template <class T>
using RaggedTensor =
    std::conditional_t<OwningTemporary<T>, Kept<T>, ViewOf<std::remove_reference_t<T>>>;

template <class T>
inline constexpr bool is_ragged = false;
template <class Like, class KeptTensor, class KeptOffsets>
inline constexpr bool is_ragged<Ragged<Like, KeptTensor, KeptOffsets>> = true;

/// All tokens of a ragged batch, and any other tensor as it is.
template <class T>
auto tokens(T& x) {
  if constexpr (is_ragged<std::remove_cv_t<T>>) {
    return view(x.tensor);
  } else {
    return view(x);
  }
}

/// The rank and the numbers of a tensor, or of a ragged batch's.
template <class T>
using TokensOf = decltype(tokens(std::declval<T&>()));

/// An uninitialised tensor of the shape and the numbers of x, or of a ragged batch's tokens.
template <class T>
auto make_like(const T& x) {
  using Scalar = typename TokensOf<const T>::Scalar;
  if constexpr (is_ragged<T>) {
    return make_result<Scalar, typename T::Like>(tokens(x).shape);
  } else {
    return make_result<Scalar, T>(tokens(x).shape);
  }
}

/// Tokens (total, dim) or (total, heads, dim) as (1, heads, total, dim).
template <class Element, int Rank>
View<Element, 4> token_heads(const View<Element, Rank>& x) {
  static_assert(Rank == 2 || Rank == 3, "heed: tokens have a rank of 2 or 3");
  auto heads = expand<4, Rank>(x);
  if constexpr (Rank == 3) {
    std::swap(heads.shape[1], heads.shape[2]);
    std::swap(heads.strides[1], heads.strides[2]);
  }
  return heads;
}
/// Numbers of tokens (total) or (total, heads) as (1, heads, total).
template <class Element, int Rank>
View<Element, 3> token_rows(const View<Element, Rank>& x) {
  static_assert(Rank == 1 || Rank == 2, "heed: one number for each token and head");
  auto heads = expand<3, Rank>(x);
  if constexpr (Rank == 2) {
    std::swap(heads.shape[1], heads.shape[2]);
    std::swap(heads.strides[1], heads.strides[2]);
  }
  return heads;
}

/// Tokens first .. first + count-1 of (1, heads, total[, dim]), which every batch entry sees.
template <class Element, int Rank>
View<Element, Rank> token_range(View<Element, Rank> x, Index first, Index count) {
  static_assert(Rank >= 3);
  x.data += first * x.strides[2];
  x.shape[2] = count;
  return x;
}

/// Where sequences begin and end, checked.
template <class Integer>
struct SequenceOffsets {
  View<const Integer, 1> offsets;

  /// std::invalid_argument unless they rise from 0 to `total`.
  SequenceOffsets(const char* function, const char* name, const View<const Integer, 1>& given,
                  Index total)
      : offsets(given) {
    if (given.shape[0] < 1) {
      fail(function, "the offsets of ", name, " are empty; there is one more than sequences");
    }
    Index before = 0;
    for (Index n = 0; n < given.shape[0]; ++n) {
      const Integer offset = given(n);
      if (!std::in_range<Index>(offset)) {
        fail(function, "offset ", n, " of ", name, " is above ", std::numeric_limits<Index>::max());
      }
      const auto at = static_cast<Index>(offset);
      if (n == 0 && at != 0) {
        fail(function, "the offsets of ", name, " begin with ", at, ", not with 0");
      }
      if (at < before) {
        fail(function, "the offsets of ", name, " fall from ", before, " to ", at, " at offset ",
             n);
      }
      before = at;
    }
    if (before != total) {
      fail(function, "the offsets of ", name, " end at ", before, ", but ", name, " has ", total,
           " tokens (axis 0)");
    }
  }

  Index count() const { return offsets.shape[0] - 1; }
  Index begin(Index sequence) const { return static_cast<Index>(offsets(sequence)); }
  Index size(Index sequence) const { return begin(sequence + 1) - begin(sequence); }
};

}  // namespace detail

/// A batch of sequences that lie one after another, without padding:
///
///   x        (total, dim), or (total, heads, dim), of any strides
///   offsets  batch + 1 integers that rise from 0 to total, as valid_lens takes integers: tokens
///            offsets[b] .. offsets[b + 1]-1 are those of sequence b, which may have none
///
/// A temporary is kept; what has a name must outlive the result, which is writable where x is.
template <class T, class Offsets>
auto ragged(T&& x, Offsets&& offsets) {
  using Tensor = detail::RaggedTensor<T&&>;
  using Plain = std::remove_cvref_t<Offsets>;
  static_assert(detail::rank_of<std::remove_reference_t<Tensor>> == 2 ||
                    detail::rank_of<std::remove_reference_t<Tensor>> == 3,
                "heed: ragged takes a tensor of rank 2 (total, dim) or 3 (total, heads, dim)");
  static_assert(detail::Integers<Plain> && detail::IntegerView<Plain>::Rank == 1,
                "heed: the offsets of ragged are integers of rank 1, one more than sequences");
  using Result = Ragged<std::remove_cvref_t<T>, Tensor, detail::Kept<Offsets&&>>;
  if constexpr (detail::OwningTemporary<T&&>) {
    return Result(std::forward<T>(x), std::forward<Offsets>(offsets));
  } else {
    return Result(view(std::forward<T>(x)), std::forward<Offsets>(offsets));
  }
}
template <class T>
auto ragged(T&& x, std::initializer_list<Index> offsets) {
  return ragged(std::forward<T>(x), std::vector<Index>(offsets));
}

}  // namespace heed
