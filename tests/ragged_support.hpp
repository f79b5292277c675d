#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "heed/ragged.hpp"
#include "support.hpp"

namespace heed::test {

/// Lengths of the sequences of a batch.
using Lengths = std::vector<Index>;

inline std::vector<Index> offsets_of(const Lengths& lengths) {
  std::vector<Index> offsets{0};
  for (const Index length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

inline Index longest(const Lengths& lengths) {
  return lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
}

/// The sequences of (batch, heads, longest, dim) as tokens (total, heads, dim), or, of one head,
/// (total, dim). What is padding there is left out.
template <class Scalar, int Rank = 3, int Order = Eigen::RowMajor>
auto packed(const Reference& padded, const Lengths& lengths) {
  const Index total = offsets_of(lengths).back(), heads = padded.dimension(1);
  const Index dim = padded.dimension(3);
  const auto offsets = offsets_of(lengths);
  const auto each = [&](const auto& store) {
    for (std::size_t b = 0; b < lengths.size(); ++b) {
      for (Index i = 0; i < lengths[b]; ++i) {
        for (Index h = 0; h < heads; ++h) {
          for (Index c = 0; c < dim; ++c) {
            store(offsets[b] + i, h, c) = rounded<Scalar>(padded(static_cast<Index>(b), h, i, c));
          }
        }
      }
    }
  };
  if constexpr (Rank == 2) {
    Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Order> result(total, dim);
    each([&](Index i, Index, Index c) -> Scalar& { return result(i, c); });
    return result;
  } else {
    Eigen::Tensor<Scalar, 3, Order, Index> result(total, heads, dim);
    each([&](Index i, Index h, Index c) -> Scalar& { return result(i, h, c); });
    return result;
  }
}

/// The inverse; padding is 0.
template <class T>
Reference unpacked(const T& tokens, const Lengths& lengths) {
  const auto x = detail::token_heads(view(tokens));
  const auto offsets = offsets_of(lengths);
  return generate({static_cast<Index>(lengths.size()), x.shape[1], longest(lengths), x.shape[3]},
                  [&](Index b, Index h, Index i, Index c) {
                    const auto at = static_cast<std::size_t>(b);
                    return i < lengths[at] ? number(x(0, h, offsets[at] + i, c)) : 0.0;
                  });
}
template <class T>
Reference unpacked_rows(const T& rows, const Lengths& lengths) {
  const auto x = detail::expand<4, 3>(detail::token_rows(detail::result_view(rows)));
  const auto offsets = offsets_of(lengths);
  return generate({static_cast<Index>(lengths.size()), x.shape[2], longest(lengths), 1},
                  [&](Index b, Index h, Index i, Index) {
                    const auto at = static_cast<std::size_t>(b);
                    return i < lengths[at] ? number(x(0, 0, h, offsets[at] + i)) : 0.0;
                  });
}

/// Tokens of one sequence of (total, heads, dim) as (1, heads, length, dim), in place.
template <class T>
auto sequence(T& tokens, const Lengths& lengths, std::size_t b) {
  return detail::token_range(detail::token_heads(view(tokens)), offsets_of(lengths)[b], lengths[b]);
}

}  // namespace heed::test
