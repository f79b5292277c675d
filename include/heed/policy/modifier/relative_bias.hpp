#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/parameters.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

template <class Kept, class Bucket, class KeptGradient = detail::NoGradient>
struct RelativeBias : ModifierPolicy {
  Kept table;
  Bucket bucket;
  KeptGradient gradient;

  RelativeBias(Kept t, Bucket f, KeptGradient dt)
      : table(std::forward<Kept>(t)), bucket(std::move(f)), gradient(dt) {}

  /// What is added depends on head and distance alone: it is kept as rows of numbers, one for each
  /// distance from -(queries - 1) to keys - 1, which `added` sees as (batch, heads, queries, keys)
  /// with the steps 0, a row, -1, 1.
  template <class Number, class Element, class Gradient>
  struct Bound {
    static constexpr ModifierTraits traits{
        .effect = Effect::shifts, .adds_tensor = true, .has_parameters = true};
    static constexpr const char* parameter_name = "the table of relative_bias";
    View<const Element, 2> table;
    Gradient gradient;
    Index queries;
    std::vector<Index> buckets;   // [distance + queries - 1]
    std::vector<Number> numbers;  // [head][distance + queries - 1]
    View<const Number, 4> added;

    Bound(const Problem& problem, const View<const Element, 2>& t, Gradient dt,
          std::vector<Index> of_distances)
        : table(t),
          gradient(dt),
          queries(problem.queries),
          buckets(std::move(of_distances)),
          numbers(static_cast<std::size_t>(problem.heads) * buckets.size(), Number(0.0)) {
      const auto distances = static_cast<Index>(buckets.size());
      for (Index h = 0; h < problem.heads; ++h) {
        for (Index n = 0; n < distances; ++n) {
          numbers[static_cast<std::size_t>(h * distances + n)] =
              static_cast<Number>(table(h, buckets[static_cast<std::size_t>(n)]));
        }
      }
      const Index zero = numbers.empty() ? 0 : queries - 1;
      added = {numbers.data() + zero, problem.score_shape(), {0, distances, -1, 1}};
    }
    // A copy would see the numbers of what it is a copy of.
    Bound(const Bound&) = delete;
    Bound& operator=(const Bound&) = delete;
    Bound(Bound&&) noexcept = default;
    Bound& operator=(Bound&&) noexcept = default;

    const auto& parameters() const { return table; }
    Number operator()(const Number& s, Index b, Index h, Index i, Index j) const {
      return s + added(b, h, i, j);
    }
    Index partials() const { return table.size(); }
    ScoreAxes shared_axes(const Problem&) const { return {}; }
    void add_gradient(const PairTile<Number>& tile, Number* partial) const {
      Number* row = partial + tile.head * table.shape[1];
      // Along a distance the bucket stays: its sum is taken first.
      for (Index d = 1 - tile.queries; d < tile.keys; ++d) {
        Number sum(0.0);
        const Index last = std::min(tile.queries, tile.keys - d);
        for (Index i = std::max<Index>(0, -d); i < last; ++i) sum += tile.at(i + d, i);
        const Index distance = tile.key - tile.query + d;
        row[buckets[static_cast<std::size_t>(distance + queries - 1)]] += sum;
      }
    }
    void add_partial(Index n, const Number& sum) const {
      detail::add_to(gradient(n / table.shape[1], n % table.shape[1]), sum);
    }
  };

  template <class Number>
  auto bind(const Problem& problem) const {
    const auto view = heed::view(table);
    using Element = typename decltype(view)::Scalar;
    const auto dt = detail::gradient_view<2>(gradient);
    if (view.shape[0] != problem.heads) {
      problem.refuse("the table of relative_bias has ", view.shape[0], " rows (axis 0) for ",
                     problem.heads, " query heads; the table is ", view.shape, ", the scores are ",
                     problem.score_shape());
    }
    std::vector<Index> buckets;
    if (problem.queries > 0 && problem.keys > 0) {
      buckets.reserve(static_cast<std::size_t>(problem.queries + problem.keys - 1));
      for (Index distance = 1 - problem.queries; distance < problem.keys; ++distance) {
        const auto n = static_cast<Index>(bucket(distance));
        if (n < 0 || n >= view.shape[1]) {
          problem.refuse("relative_bias puts the distance ", distance, " into bucket ", n,
                         ", but the table ", view.shape, " has ", view.shape[1],
                         " buckets (axis 1); the scores are ", problem.score_shape());
        }
        buckets.push_back(n);
      }
    }
    return Bound<Number, Element, std::remove_const_t<decltype(dt)>>(problem, view, dt,
                                                                     std::move(buckets));
  }
};

namespace detail {

template <class Table, class Bucket>
constexpr void check_relative_bias() {
  static_assert(rank_of<std::remove_reference_t<Table>> == 2,
                "heed: relative_bias takes a table of rank 2, (heads, buckets)");
  static_assert(std::is_invocable_v<const Bucket&, Index> &&
                    std::is_convertible_v<std::invoke_result_t<const Bucket&, Index>, Index>,
                "heed: the bucket of relative_bias is a function of an Index that gives an Index");
}

}  // namespace detail

/// Adds table(h, bucket(j - i)) for query i and key j of head h: table (heads, buckets), bucket a
/// function Index -> Index, which a call asks once for each distance that there is. A call sets up
/// a number for each head and distance, and nothing of queries x keys. std::invalid_argument where
/// a bucket is not in the table. The table must outlive the modifier unless temporary. (Shaw,
/// Uszkoreit and Vaswani, "Self-attention with relative position representations", 2018; Raffel et
/// al., "Exploring the limits of transfer learning with a unified text-to-text transformer", 2020.)
template <class Table, class Bucket>
auto relative_bias(Table&& table, Bucket bucket) {
  detail::check_relative_bias<Table, Bucket>();
  return RelativeBias<detail::Kept<Table&&>, Bucket>(std::forward<Table>(table), std::move(bucket),
                                                     {});
}
/// attention_backward adds the gradient of the table to dtable, of its shape, which outlives the
/// modifier or is a View.
template <class Table, class Bucket, class Gradient>
auto relative_bias(Table&& table, Bucket bucket, Gradient&& dtable) {
  detail::check_relative_bias<Table, Bucket>();
  detail::check_gradient_type<Gradient&&>();
  return RelativeBias<detail::Kept<Table&&>, Bucket, detail::KeptGradient<Gradient&&>>(
      std::forward<Table>(table), std::move(bucket), dtable);
}

/// The buckets of T5 (Raffel et al., 2020), for relative_bias. Of the n buckets of a direction,
/// half are of one distance each; the other half grow with the logarithm, up to max_distance, and
/// the last holds all that is farther. Bidirectional: the first count / 2 for keys up to the
/// query's own, the others for keys after it. Otherwise all of them look back, and keys after the
/// query share bucket 0 with the query's own.
inline auto t5_buckets(Index count, Index max_distance, bool bidirectional) {
  const Index direction = bidirectional ? count / 2 : count;
  const Index exact = direction / 2;
  if (direction < 2) {
    detail::fail("t5_buckets", "a count of ", count, " leaves ", direction,
                 " buckets for a direction, which must be 2 or more");
  }
  if (max_distance <= exact) {
    detail::fail("t5_buckets", "the largest distance, ", max_distance,
                 ", is not above that of the exact buckets, ", exact);
  }
  return [=](Index distance) -> Index {
    const Index first = bidirectional && distance > 0 ? direction : 0;
    // -distance of the least Index is none.
    const Index back = -std::max(distance, -std::numeric_limits<Index>::max());
    const Index apart = bidirectional && distance > 0 ? distance : std::max<Index>(back, 0);
    if (apart < exact) return first + apart;
    if (apart >= max_distance) return first + direction - 1;
    const double reach = static_cast<double>(exact);
    const double part = std::log(static_cast<double>(apart) / reach) /
                        std::log(static_cast<double>(max_distance) / reach);
    // Where the quotient is a whole number, rounding must not leave it below.
    const double step = part * static_cast<double>(direction - exact) * (1 + 1e-13);
    return first + std::min(exact + static_cast<Index>(step), direction - 1);
  };
}

}  // namespace heed
