#pragma once

#include <algorithm>
#include <concepts>
#include <type_traits>

#include "heed/core/view.hpp"

namespace heed::detail {

/// Rows of one head, evenly apart.
template <class Element>
struct Run {
  const Stored<Element>* data;
  Index row_stride, column_stride;
  Index count;
  const float* scales = nullptr;  // of Quantised8, one for each row

  Run from(Index r) const {
    return {data + r * row_stride, row_stride, column_stride, count - r,
            scales ? scales + r : scales};
  }
  /// What the numbers of row r are multiplied by.
  float scale(Index r) const {
    if constexpr (std::is_same_v<Element, Quantised8>) return scales[r];
    return 1;
  }
  /// Number c of row r, as what sums are held in or wider.
  template <class Number>
  Number at(Index r, Index c) const {
    const auto number = static_cast<Number>(data[r * row_stride + c * column_stride]);
    if constexpr (std::is_same_v<Element, Quantised8>) {
      return number * static_cast<Number>(scales[r]);
    } else {
      return number;
    }
  }
};

/// Where keys or values come from. An engine asks for a run of rows, never for the stride of a
/// whole head, so that rows may lie in pages, in a ring or in several sequences:
///   Element                         the type of the numbers in memory
///   width()                         numbers of a row
///   run(batch, head, first, most)   the rows from `first` on that lie evenly: at least one, at
///   most
///                                   `most` of them, for most >= 1
template <class T>
concept KeySource = requires(const T& source, Index n) {
  typename T::Element;
  { source.width() } -> std::same_as<Index>;
  { source.run(n, n, n, n) } -> std::same_as<Run<typename T::Element>>;
};

/// Rows of a tensor (batch, heads, keys, dim).
template <class Element_>
struct TensorRows {
  using Element = Element_;
  View<const Element, 4> tensor;

  Index width() const { return tensor.shape[3]; }
  Run<Element> run(Index batch, Index head, Index first, Index most) const {
    return {tensor.data + batch * tensor.strides[0] + head * tensor.strides[1] +
                first * tensor.strides[2],
            tensor.strides[2], tensor.strides[3], most};
  }
};

/// body(first, run) for the runs that make up rows first .. first + count-1, `first` counted from
/// the first of them.
template <KeySource Source>
void for_each_source_run(const Source& source, Index batch, Index head, Index first, Index count,
                         const auto& body) {
  for (Index done = 0; done < count;) {
    const auto run = source.run(batch, head, first + done, count - done);
    body(done, run);
    done += run.count;
  }
}

}  // namespace heed::detail
