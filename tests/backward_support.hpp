#pragma once

#include "heed/attention.hpp"
#include "score_support.hpp"

namespace heed::test {

/// The gradient of the output of all tests: of the number sum of output * grad_output.
inline Reference grad_output_for(const Inputs& in) {
  return random(
      {in.query.dimension(0), in.query.dimension(1), in.query.dimension(2), in.value.dimension(3)},
      77);
}

struct GradientReferences {
  Reference query, key, value;
};

template <class Scalar, class Score, class Mask>
GradientReferences gradients_of(const Inputs& in, const Reference& grad_output, const Score& score,
                                const Mask& mask, const AttentionOptions& options = {}) {
  const auto q = make<Scalar, 4>(in.query), k = make<Scalar, 4>(in.key),
             v = make<Scalar, 4>(in.value);
  const auto pass = attention_forward(q, k, v, score, mask, options);
  const auto gradients =
      attention_backward(q, k, v, pass, make<Scalar, 4>(grad_output), score, mask, options);
  return {reference(gradients.query), reference(gradients.key), reference(gradients.value)};
}

inline double largest(const Reference& x) {
  double result = 0;
  for (Index n = 0; n < x.size(); ++n) result = std::max(result, std::abs(x.data()[n]));
  return result;
}

/// Within `bound` of the largest element (or of 1).
inline ::testing::AssertionResult near_relative(const Reference& actual, const Reference& expected,
                                                double bound) {
  return near(actual, expected, bound * (1 + largest(expected)));
}

inline void expect_near(const GradientReferences& actual, const GradientReferences& expected,
                        double bound) {
  EXPECT_TRUE(near_relative(actual.query, expected.query, bound)) << "query";
  EXPECT_TRUE(near_relative(actual.key, expected.key, bound)) << "key";
  EXPECT_TRUE(near_relative(actual.value, expected.value, bound)) << "value";
}

/// What gradients in Scalar may differ by from exact ones, relative to the largest: some units of
/// rounding of scores, sums and, for narrow types, of the pass's output.
template <class Scalar>
double gradient_bound() {
  constexpr bool narrow = sizeof(Scalar) == 2;
  return narrow ? 4 * epsilon<Scalar>() : 64 * epsilon<Scalar>();
}

/// Parameters of a score and where their gradients are added.
struct Trainable {
  double* values;
  double* gradients;
  Index count;
};
template <class T>
Trainable trainable(T& values, T& gradients) {
  return {values.data(), gradients.data(), values.size()};
}

/// Every gradient is the central difference of the loss. make_score is called for each evaluation,
/// as a score may hold a copy of its parameter. Gradients of parameters are added to what is there.
template <class MakeScore, class Mask>
void expect_central_differences(const Inputs& in, const MakeScore& make_score, const Mask& mask,
                                const std::vector<Trainable>& parameters = {},
                                const AttentionOptions& options = {}) {
  auto q = make<double, 4>(in.query), k = make<double, 4>(in.key), v = make<double, 4>(in.value);
  const auto weights = make<double, 4>(grad_output_for(in));
  Tensor<double, 4> output(weights.dimensions());
  const auto loss = [&] {
    attention_into(output, q, k, v, make_score(), mask, options);
    double sum = 0;
    for (Index n = 0; n < output.size(); ++n) sum += output.data()[n] * weights.data()[n];
    return sum;
  };
  constexpr double before = .5;
  for (const Trainable& p : parameters) std::fill(p.gradients, p.gradients + p.count, before);
  const auto pass = attention_forward(q, k, v, make_score(), mask, options);
  const auto gradients = attention_backward(q, k, v, pass, weights, make_score(), mask, options);

  const auto check = [&](const char* name, double* values, const double* gradient, Index count,
                         double added_to) {
    constexpr double step = 1e-5;
    for (Index n = 0; n < count; ++n) {
      const double here = values[n];
      values[n] = here + step;
      const double up = loss();
      values[n] = here - step;
      const double down = loss();
      values[n] = here;
      const double expected = (up - down) / (2 * step);
      const double error = std::abs(gradient[n] - added_to - expected);
      EXPECT_TRUE(error <= 2e-8 * (1 + std::abs(expected)))
          << name << "[" << n << "] " << gradient[n] - added_to << " and not " << expected;
    }
  };
  check("query", q.data(), gradients.query.data(), q.size(), 0);
  check("key", k.data(), gradients.key.data(), k.size(), 0);
  check("value", v.data(), gradients.value.data(), v.size(), 0);
  for (const Trainable& p : parameters) {
    check("parameter", p.values, p.gradients, p.count, before);
  }
}

/// Small enough for differences by every element; two heads share keys.
inline const Sizes few = {
    .batch = 2, .heads = 4, .key_heads = 2, .queries = 5, .keys = 6, .dim = 3, .width = 2};

/// A score as it stands, on the few.
template <class Score, class Mask = NoMask>
void check(const Score& score, const Mask& mask = no_mask(),
           const std::vector<Trainable>& parameters = {}) {
  expect_central_differences(
      Inputs(few), [&]() -> const Score& { return score; }, mask, parameters);
}

}  // namespace heed::test
