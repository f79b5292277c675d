#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "heed/core/parallel.hpp"
#include "heed/engine/call.hpp"
#include "heed/policy/contract.hpp"

namespace heed::detail {

/// Attention of one query, as the definition reads: its scores, modified and masked, their softmax,
/// dropout, and the mean of the values under it. Sums over keys are taken in blocks, whose length
/// bounds the growth of rounding errors.
template <class Call>
class ReferenceRow {
  using Number = typename Call::Number;
  static constexpr Index block = 128;

 public:
  explicit ReferenceRow(const Call& call)
      : call_(call),
        numbers_(at(call.problem.key_dim + call.problem.keys + 2 * call.problem.value_dim), zero),
        query_(numbers_.data()),
        row_(query_ + call.problem.key_dim),
        part_(row_ + call.problem.keys),
        sums_(part_ + call.problem.value_dim),
        seen_(at(call.problem.keys)) {}

  /// body(key, score) for every key that the query sees, in order; the score is after all
  /// modifiers.
  void for_each_score(Index b, Index h, Index i, const auto& body) {
    const Problem& problem = call_.problem;
    const auto& score = call_.definition;
    const Index kv = problem.kv_head(h);
    prepare_query(
        score.similarity, problem,
        [&](Index c) { return static_cast<Number>(call_.query(b, h, i, c)); }, query_);
    for_each_visible(
        call_.mask, call_.mask.row(b, h, i), b, h, i, Index(0), problem.keys, [&](Index j) {
          const auto key = call_.keys.run(b, kv, j, 1);
          Number sum = zero;
          for (Index c = 0; c < problem.key_dim; ++c) {
            sum = score.similarity.step(sum, query_[c], key.template at<Number>(0, c), c);
          }
          Number entry = score.similarity.finish(sum);
          std::apply(
              [&](const auto&... modifier) {
                ((entry = modified<Number>(modifier, entry, b, h, i, j)), ...);
              },
              score.modifiers);
          body(j, entry);
        });
  }

  void attend(Index b, Index h, Index i) {
    using std::exp, std::log;
    const Problem& problem = call_.problem;
    const Index kv = problem.kv_head(h);
    Number largest = -infinity;
    Index count = 0;  // of keys that are seen
    for_each_score(b, h, i, [&](Index j, const Number& entry) {
      seen_[at(count)] = j;
      row_[count++] = entry;
      if (entry > largest) largest = entry;
    });
    // body(n) for every key seen, block by block, and end() after each block.
    const auto in_blocks = [count](const auto& body, const auto& end) {
      for (Index first = 0; first < count; first += block) {
        for (Index n = first; n < std::min(first + block, count); ++n) body(n);
        end();
      }
    };
    const auto& modifiers = call_.definition.modifiers;
    for_each_sink(modifiers, h, [&](const Number& logit) {
      if (logit > largest) largest = logit;
    });
    // Where no score is above -infinity nothing is subtracted, and every weight is 0; a NaN still
    // reaches the sum.
    const Number shift = largest > -infinity ? largest : zero;
    Number sum = zero, part = zero;
    in_blocks(
        [&](Index n) {
          row_[n] = exp(Number(row_[n] - shift));
          part += row_[n];
        },
        [&] {
          sum += part;
          part = zero;
        });
    for_each_sink(modifiers, h, [&](const Number& logit) { sum += exp(Number(logit - shift)); });

    const auto& to = call_.output;
    const bool empty = sum == zero;
    if (to.log_sum_exp.data) {
      to.log_sum_exp(b, h, i) = empty ? Number(-infinity) : Number(shift + log(sum));
    }
    if constexpr (WithWeights<typename Call::Output>) {
      for (Index j = 0; j < problem.keys; ++j) store(to.weights(b, h, i, j), zero);
    }
    std::fill_n(part_, 2 * problem.value_dim, zero);  // and the sums behind it
    if (!empty) {
      const auto counter = call_.dropout.row(b, h, i);
      const auto scale = static_cast<Number>(call_.dropout.scale());
      in_blocks(
          [&](Index n) {
            const Index j = seen_[at(n)];
            const Number weight = row_[n] / sum;
            if constexpr (WithWeights<typename Call::Output>) {
              store(to.weights(b, h, i, j), weight);
            }
            const Number kept = !call_.dropout.active()           ? weight
                                : call_.dropout.keeps(counter, j) ? Number(weight * scale)
                                                                  : Number(weight * zero);
            const auto value = call_.values.run(b, kv, j, 1);
            for (Index c = 0; c < problem.value_dim; ++c) {
              part_[c] += kept * value.template at<Number>(0, c);
            }
          },
          [&] {
            for (Index c = 0; c < problem.value_dim; ++c) {
              sums_[c] += part_[c];
              part_[c] = zero;
            }
          });
    }
    for (Index c = 0; c < problem.value_dim; ++c) store(to.output(b, h, i, c), sums_[c]);
  }

 private:
  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
  template <class Element>
  static void store(Element& to, const Number& x) {
    to = static_cast<Element>(x);
  }

  const Number zero = Number(0.0), infinity = Number(std::numeric_limits<double>::infinity());
  const Call& call_;
  std::vector<Number> numbers_;
  Number *query_, *row_, *part_, *sums_;
  std::vector<Index> seen_;
};

/// A piece of work is one query of one head.
inline Index reference_rows(const Problem& problem) {
  return problem.entries() * problem.heads * problem.queries;
}

/// body(row, batch, head, query) for queries first .. last-1 of all, with one ReferenceRow.
template <class Call>
void for_each_reference_row(const Call& call, Index first, Index last, const auto& body) {
  const Problem& problem = call.problem;
  ReferenceRow<Call> row(call);
  for (Index item = first; item < last; ++item) {
    body(row, problem.first_entry() + item / problem.queries / problem.heads,
         item / problem.queries % problem.heads, item % problem.queries);
  }
}

/// Attention row by row. It defines the semantics, gives the weights, and runs for any number type
/// that has +, -, *, /, comparisons and, found by argument lookup or in std, what its score uses of
/// exp, log, tanh, sqrt.
template <class Call>
class Reference {
 public:
  static constexpr bool possible = true;
  static std::true_type suits(const Call&) { return {}; }

  explicit Reference(const Call& call) : call_(call) {}

  Index pieces() const { return reference_rows(call_.problem); }
  void run(Index first, Index last) const {
    for_each_reference_row(call_, first, last,
                           [](auto& row, Index b, Index h, Index i) { row.attend(b, h, i); });
  }

 private:
  const Call& call_;
};

/// The scores that attention takes the softmax of, those of hidden pairs -infinity.
template <class Call>
class ReferenceScores {
 public:
  static constexpr bool possible = true;
  static std::true_type suits(const Call&) { return {}; }

  explicit ReferenceScores(const Call& call) : call_(call) {}

  Index pieces() const { return reference_rows(call_.problem); }
  void run(Index first, Index last) const {
    const auto& scores = call_.output.scores;
    using Element = typename std::remove_cvref_t<decltype(scores)>::Scalar;
    using Number = typename Call::Number;
    for_each_reference_row(call_, first, last, [&](auto& row, Index b, Index h, Index i) {
      const auto hidden = static_cast<Element>(Number(-std::numeric_limits<double>::infinity()));
      for (Index j = 0; j < call_.problem.keys; ++j) scores(b, h, i, j) = hidden;
      row.for_each_score(b, h, i, [&](Index j, const Number& score) {
        scores(b, h, i, j) = static_cast<Element>(score);
      });
    });
  }

 private:
  const Call& call_;
};

}  // namespace heed::detail
