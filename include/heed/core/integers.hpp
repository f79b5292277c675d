#pragma once

#include <concepts>
#include <cstddef>
#include <initializer_list>
#include <ranges>
#include <type_traits>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"

namespace heed::detail {

/// Integers of rank 1 or 2: a list, std::vector, Eigen vector, matrix or tensor. A vector of
/// Eigen's has rank 1. `kept` is the container (see Kept).
template <class T>
auto integer_view(const T& kept) {
  if constexpr (requires {
                  kept.data();
                  kept.size();
                  typename T::value_type;
                } && !EigenDense<T> && !EigenTensorLike<T>) {
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
concept Integers = requires(const T& x) { integer_view(x); } && IntegerView<T>::Rank <= 2 &&
                   std::integral<typename IntegerView<T>::Scalar> &&
                   !std::same_as<typename IntegerView<T>::Scalar, bool>;

/// A T&& that is a container of integers and the last that is seen of them.
template <class T>
concept TemporaryIntegers =
    OwningTemporary<T> ||
    (std::ranges::range<T> && !std::ranges::borrowed_range<T> &&
     !EigenDense<std::remove_cvref_t<T>> && !EigenTensorLike<std::remove_cvref_t<T>>);

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

}  // namespace heed::detail
