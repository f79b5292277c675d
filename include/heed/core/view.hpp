#pragma once

#include <array>
#include <cstddef>
#include <type_traits>
#include <utility>
#include <Eigen/Core>
#include <unsupported/Eigen/CXX11/Tensor>

#include "heed/core/error.hpp"
#include "heed/core/quantised.hpp"

namespace heed {

using Index = Eigen::Index;

/// Row-major tensor: what heed allocates for weights of its own and for results of Views.
template <class Scalar, int Rank>
using Tensor = Eigen::Tensor<Scalar, Rank, Eigen::RowMajor, Index>;

/// Row-major matrix: every result of rank 2.
template <class Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class Scalar>
using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

/// A window on elements that somebody else owns: shape and strides (in elements, any sign, 0 to
/// repeat an axis). Cheap to copy; `View<const Scalar, Rank>` is read-only.
template <class Scalar_, int Rank_>
struct View {
  static_assert(Rank_ >= 1 && Rank_ <= 4, "heed: a View has a rank from 1 to 4");
  using Scalar = std::remove_const_t<Scalar_>;
  static constexpr int Rank = Rank_;

  Scalar_* data = nullptr;
  std::array<Index, static_cast<std::size_t>(Rank_)> shape{};
  std::array<Index, static_cast<std::size_t>(Rank_)> strides{};

  template <class... Indices>
    requires(sizeof...(Indices) == Rank_)
  Scalar_& operator()(Indices... indices) const {
    Index offset = 0;
    auto stride = strides.begin();
    ((offset += static_cast<Index>(indices) * *stride++), ...);
    return data[offset];
  }

  Index size() const {
    Index product = 1;
    for (Index extent : shape) product *= extent;
    return product;
  }

  operator View<const Scalar_, Rank_>() const
    requires(!std::is_const_v<Scalar_>)
  {
    return {data, shape, strides};
  }
};

namespace detail {

template <class T>
inline constexpr bool is_view = false;
template <class Scalar, int Rank>
inline constexpr bool is_view<View<Scalar, Rank>> = true;

/// By way of a base of T too: a segment of a vector is a kind of Block, a user's class of Matrix.
template <class Dense>
void accept_dense(const Eigen::DenseBase<Dense>*);
template <class T>
concept EigenDense = requires(const T* x) { accept_dense(x); };

template <class T>
concept EigenDirect = EigenDense<T> && bool(T::Flags & Eigen::DirectAccessBit);

template <class T>
concept EigenTensorLike = requires {
  T::NumDimensions;
  typename T::Scalar;
} && !EigenDense<T>;

template <class T>
concept EigenTensor = EigenTensorLike<T> && requires(T& x) {
  x.data();
  x.dimensions();
};

template <class T>
constexpr bool owns(const Eigen::PlainObjectBase<T>*) {
  return true;
}
template <class Scalar, int Rank, int Options, class I>
constexpr bool owns(const Eigen::Tensor<Scalar, Rank, Options, I>*) {
  return true;
}
template <class Scalar, class Sizes, int Options, class I>
constexpr bool owns(const Eigen::TensorFixedSize<Scalar, Sizes, Options, I>*) {
  return true;
}
/// A Ref to const copies what it cannot refer to.
template <class T, int Options, class Stride>
constexpr bool owns(const Eigen::Ref<const T, Options, Stride>*) {
  return true;
}
/// A matrix, array or tensor whose elements end with it.
template <class T>
concept Owner = owns(static_cast<const T*>(nullptr));

/// A T&& of this kind is the last that is seen of its elements.
template <class T>
concept OwningTemporary = !std::is_lvalue_reference_v<T> && Owner<std::remove_cvref_t<T>>;

/// Order of a result that takes after T: RowMajor unless T is a column-major tensor.
template <class T>
constexpr int storage_order() {
  if constexpr (EigenTensor<T>) {
    return static_cast<int>(T::Layout);
  } else {
    return Eigen::RowMajor;
  }
}

template <class T>
inline constexpr bool dependent_false = false;

}  // namespace detail

/// View of an Eigen::Tensor, TensorMap, Matrix, Array, Map, Ref, Transpose or Block, of either
/// storage order, without a copy; it is valid as long as the elements of x are. A matrix or vector
/// has rank 2. A View stays as it is. Refused at compile time: what has no elements in memory, as
/// the expression `2 * a`, and a temporary that owns its elements.
template <class T>
EIGEN_ALWAYS_INLINE auto view(T&& x) {
  using Plain = std::remove_cvref_t<T>;
  static_assert(!detail::OwningTemporary<T>,
                "heed: a view of a temporary would outlive its elements; give the tensor a name");
  if constexpr (detail::is_view<Plain>) {
    return Plain(x);
  } else if constexpr (detail::EigenDense<Plain>) {
    static_assert(detail::EigenDirect<Plain>,
                  "heed: this Eigen expression has no elements in memory; call .eval() on it");
    using Scalar = std::remove_pointer_t<decltype(x.data())>;
    const Index inner = x.innerStride(), outer = x.outerStride();
    using Strides = std::array<Index, 2>;
    return View<Scalar, 2>{x.data(),
                           {x.rows(), x.cols()},
                           Plain::IsRowMajor ? Strides{outer, inner} : Strides{inner, outer}};
  } else if constexpr (detail::EigenTensorLike<Plain>) {
    static_assert(detail::EigenTensor<Plain>,
                  "heed: this tensor expression has no elements in memory; evaluate it first");
    constexpr int rank = static_cast<int>(Plain::NumDimensions);
    static_assert(rank >= 1 && rank <= 4, "heed: tensors have a rank from 2 to 4");
    using Scalar = std::remove_pointer_t<decltype(x.data())>;
    View<Scalar, rank> result{x.data(), {}, {}};
    Index stride = 1;
#pragma GCC unroll 4
    for (int step = 0; step < rank; ++step) {
      const bool row_major = detail::storage_order<Plain>() == Eigen::RowMajor;
      const auto axis = static_cast<std::size_t>(row_major ? rank - 1 - step : step);
      result.shape[axis] = static_cast<Index>(x.dimensions()[axis]);
      result.strides[axis] = stride;
      stride *= result.shape[axis];
    }
    return result;
  } else {
    static_assert(detail::dependent_false<T>,
                  "heed: expected an Eigen tensor, matrix, array, map or block, or a heed::View");
  }
}

namespace detail {

template <class T>
using ViewOf = decltype(view(std::declval<T&>()));

template <class T>
inline constexpr int rank_of = ViewOf<const T>::Rank;

template <class T>
using ScalarOf = typename ViewOf<const T>::Scalar;

/// Weights between 0 and 1 are no integers.
template <class... T>
constexpr void check_not_integers() {
  static_assert((!std::is_integral_v<ScalarOf<T>> && ...),
                "heed: softmax, attention and layers work on real numbers; convert integers (and "
                "bool) first, as with x.cast<float>()");
}

/// What sums of Scalar are held in.
template <class Scalar>
using Accumulator = std::conditional_t<std::is_same_v<Scalar, Eigen::half> ||
                                           std::is_same_v<Scalar, Eigen::bfloat16> ||
                                           std::is_same_v<Scalar, Quantised8>,
                                       float, Scalar>;

/// The type of a result: rank 1 a Vector, rank 2 a Matrix, above a Tensor of the given order.
template <class Scalar, int Rank, int Order>
struct ResultType {
  using type = Eigen::Tensor<Scalar, Rank, Order, Index>;
};
template <class Scalar, int Order>
struct ResultType<Scalar, 2, Order> {
  using type = Matrix<Scalar>;
};
template <class Scalar, int Order>
struct ResultType<Scalar, 1, Order> {
  using type = Vector<Scalar>;
};

template <class Scalar, class Like, int Rank = rank_of<Like>>
using ResultLike = typename ResultType<Scalar, Rank, storage_order<Like>()>::type;

/// An uninitialised result of the given shape, of the storage order that Like has.
template <class Scalar, class Like, std::size_t Rank>
auto make_result(const std::array<Index, Rank>& shape) {
  using Result = ResultLike<Scalar, Like, static_cast<int>(Rank)>;
  if constexpr (Rank == 1) {
    return Result(shape[0]);
  } else if constexpr (Rank == 2) {
    return Result(shape[0], shape[1]);
  } else {
    return Result(shape);
  }
}

/// View of a result of rank 1 to 4; a Vector counts as rank 1.
template <class T>
auto result_view(T& x) {
  if constexpr (EigenDense<std::remove_cv_t<T>>) {
    if constexpr (std::remove_cv_t<T>::ColsAtCompileTime == 1) {
      using Scalar = std::remove_pointer_t<decltype(x.data())>;
      return View<Scalar, 1>{x.data(), {x.size()}, {x.innerStride()}};
    } else {
      return view(x);
    }
  } else {
    return view(x);
  }
}

/// Axes of extent 1 and stride 0 are put in front of the last `Last` axes: (seq, dim) and
/// (batch, seq, dim) become (batch, heads, seq, dim) for Last = 2, and (queries) and
/// (batch, queries) become (batch, heads, queries) for Last = 1. All strides of a tensor without
/// data are 0, so that no pointer is formed from null.
template <int Target, int Last, class Scalar, int Rank>
EIGEN_ALWAYS_INLINE View<Scalar, Target> expand(const View<Scalar, Rank>& x) {
  static_assert(Rank >= Last && Rank <= Target);
  View<Scalar, Target> result{x.data, {}, {}};
  result.shape.fill(1);
#pragma GCC unroll 4
  for (int axis = 0; axis < Rank; ++axis) {
    const int leading = Rank - Last;
    const auto to = static_cast<std::size_t>(axis < leading ? axis : axis + Target - Rank);
    result.shape[to] = x.shape[static_cast<std::size_t>(axis)];
    result.strides[to] = x.data ? x.strides[static_cast<std::size_t>(axis)] : 0;
  }
  return result;
}

/// A vector, or a tensor of rank 2 to 4, as rank 4.
template <class Element, int Rank>
View<Element, 4> spread(const View<Element, Rank>& x) {
  return expand<4, (Rank < 2 ? Rank : 2)>(x);
}

/// (batch, heads, seq, dim) of a tensor of rank 2 to 4.
template <class T>
EIGEN_ALWAYS_INLINE auto rank4(T& x) {
  static_assert(ViewOf<T>::Rank >= 2, "heed: tensors have a rank from 2 to 4");
  return expand<4, 2>(view(x));
}

/// body(b, h, i) for every row of (batch, heads, rows, columns).
template <class Body>
void for_each_row(const std::array<Index, 4>& shape, const Body& body) {
  for (Index b = 0; b < shape[0]; ++b) {
    for (Index h = 0; h < shape[1]; ++h) {
      for (Index i = 0; i < shape[2]; ++i) body(b, h, i);
    }
  }
}

template <class T>
inline constexpr bool is_map = false;
template <class T, int Options, class Stride>
inline constexpr bool is_map<Eigen::Map<T, Options, Stride>> = true;

/// How a policy keeps an argument of type T&&. A View or a Map is kept as it is. What has a name is
/// referred to and must outlive the policy. A temporary is kept by value: of a block, a transpose
/// or a Ref, which may refer to another temporary, the elements are.
template <class T>
struct KeptType {
  using type = std::remove_cv_t<T>;
};
template <class T>
  requires(!is_view<std::remove_const_t<T>>)
struct KeptType<T&> {
  using type = const T&;
};
template <class T>
  requires(is_view<std::remove_const_t<T>>)
struct KeptType<T&> {
  using type = std::remove_const_t<T>;
};
template <class T>
  requires(EigenDirect<std::remove_cv_t<T>> && !is_map<std::remove_cv_t<T>>)
struct KeptType<T> {
  using type = typename T::PlainObject;
};
template <class T>
struct KeptType<T&&> : KeptType<T> {};
template <class T>
using Kept = typename KeptType<T>::type;

}  // namespace detail

/// (batch, seq, heads * dim) seen as (batch, heads, seq, dim), without a copy.
/// Throws std::invalid_argument where heads does not divide the last axis.
template <class T>
auto split_heads(T&& x, Index heads) {
  const auto packed = view(std::forward<T>(x));
  static_assert(decltype(packed)::Rank == 3, "heed: split_heads takes a tensor of rank 3");
  if (heads < 1 || packed.shape[2] % heads != 0) {
    detail::fail("split_heads", "axis 2 of ", packed.shape, " does not divide into ", heads,
                 " heads");
  }
  using Element = std::remove_pointer_t<decltype(packed.data)>;
  const Index dim = packed.shape[2] / heads;
  return View<Element, 4>{
      packed.data,
      {packed.shape[0], heads, packed.shape[1], dim},
      {packed.strides[0], dim * packed.strides[2], packed.strides[1], packed.strides[2]}};
}

/// x with its last two axes swapped, without a copy.
template <class T>
auto transposed(T&& x) {
  auto result = view(std::forward<T>(x));
  constexpr std::size_t last = decltype(result)::Rank - 1;
  static_assert(last >= 1, "heed: transposed takes a tensor of rank 2 to 4");
  std::swap(result.shape[last - 1], result.shape[last]);
  std::swap(result.strides[last - 1], result.strides[last]);
  return result;
}

}  // namespace heed
