#include <functional>

#include "backward_support.hpp"
#include "heed/mask.hpp"

namespace heed::test {
namespace {

/// One key more, of zeros.
Reference with_zero_row(const Reference& x) {
  Shape shape = x.dimensions();
  const Index last = shape[2]++;
  return generate(
      shape, [&](Index b, Index h, Index i, Index c) { return i < last ? x(b, h, i, c) : 0.; });
}

/// Attention with a sink is attention to one key more, whose score is the logit and whose value 0.
template <class Scalar, class Score, class Mask, class Formula>
void expect_sink(const Inputs& inputs, const Score& score, const Mask& mask, const Formula& formula,
                 const std::function<bool(Index, Index, Index, Index)>& allowed,
                 const std::vector<double>& logits, double magnitude = 4) {
  const Inputs in = inputs.rounded_to<Scalar>();
  const Index keys = in.key.dimension(2);
  SCOPED_TRACE("query, key, value: " + text(Shape(in.query.dimensions())) +
               text(Shape(in.key.dimensions())) + text(Shape(in.value.dimensions())));
  const Expected<Scalar> expected(
      in.query, with_zero_row(in.key), with_zero_row(in.value),
      [&](const auto& p) {
        using Real = RealOf<decltype(p)>;
        return p.j == keys ? static_cast<Real>(logits[static_cast<std::size_t>(p.h)])
                           : static_cast<Real>(formula(p));
      },
      [&](Index b, Index h, Index i, Index j) { return j == keys || allowed(b, h, i, j); },
      [](auto...) { return 1.0; }, magnitude);
  const auto q = make<Scalar, 4>(in.query), k = make<Scalar, 4>(in.key),
             v = make<Scalar, 4>(in.value);
  const auto pass = attention_forward(q, k, v, score, mask);
  EXPECT_TRUE(expected.accepts(pass.output)) << "attention_forward";
  EXPECT_TRUE(expected.accepts_log_sum_exp(pass.log_sum_exp)) << "log_sum_exp";
  const auto [output, weights] = attention_with_weights(q, k, v, score, mask);
  EXPECT_TRUE(expected.accepts(output)) << "attention_with_weights";
  Shape shape = expected.weights.dimensions();
  shape[3] = keys;
  EXPECT_TRUE(near(reference(weights),
                   generate(shape, [&](auto... at) { return expected.weights(at...); }),
                   expected.weights_bound))
      << "weights";
}

// Scores 0 and log 2 beside a logit of log 3: the weights are 1/6 and 2/6, 3/6 goes to the sink,
// and the output is 6 / 6 + 12 * 2 / 6 = 5. With a logit of 0 they are 1/4, 2/4: 6 / 4 + 12 / 2
// = 7.5.
TEST(Sink, ByHand) {
  Matrix<double> q(1, 1), k(2, 1), v(2, 1);
  q << 1;
  k << 0, std::log(2.);
  v << 6, 12;
  const auto score = dot_product() | sink({std::log(3.)});
  const auto [output, weights] = attention_with_weights(q, k, v, score);
  EXPECT_NEAR(weights(0), 1. / 6, 1e-15);
  EXPECT_NEAR(weights(1), 2. / 6, 1e-15);
  EXPECT_NEAR(output(0), 5, 1e-14);
  const auto pass = attention_forward(q, k, v, score);
  EXPECT_NEAR(pass.output(0), 5, 1e-14);
  EXPECT_NEAR(pass.log_sum_exp(0), std::log(6.), 1e-15);
  EXPECT_NEAR(attention(q, k, v, dot_product() | sink({0}))(0), 7.5, 1e-14);
  // Two sinks are two: 1/9, 2/9.
  EXPECT_NEAR(attention(q, k, v, score | sink({std::log(3.)}))(0), 30. / 9, 1e-14);
  // Where it stands in the chain does not matter, and scores are as they are without.
  EXPECT_EQ(attention(q, k, v, score | softcap(2))(0),
            attention(q, k, v, dot_product() | softcap(2) | sink({std::log(3.)}))(0));
  EXPECT_TRUE(same(reference(attention_scores(q, k, score)),
                   reference(attention_scores(q, k, dot_product()))));
}

template <class Scalar>
void over_sizes() {
  const Vector<Scalar> logits = vector_of<Scalar>(2, 7, 2);
  const std::vector<double> known = {number(logits(0)), number(logits(1))};
  for (const Sizes& sizes : sweep()) {
    expect_sink<Scalar>(Inputs(sizes), scaled_dot_product() | sink(logits), no_mask(), scaled_dot(),
                        everything(), known);
  }
}
TEST(Sink, OfFloat) { over_sizes<float>(); }
TEST(Sink, OfDouble) { over_sizes<double>(); }
TEST(Sink, OfHalf) { over_sizes<Eigen::half>(); }
TEST(Sink, OfLongDouble) {
  const Inputs in({.heads = 2, .queries = 3, .keys = 5, .dim = 4, .width = 3});
  expect_sink<double>(in, scaled_dot_product() | sink({1, -2}), no_mask(), scaled_dot(),
                      everything(), {1, -2});
  const auto q = make<long double, 4>(in.query), k = make<long double, 4>(in.key),
             v = make<long double, 4>(in.value);
  EXPECT_TRUE(
      near(reference(attention(q, k, v, scaled_dot_product() | sink({1, -2}))),
           reference(attention(make<double, 4>(in.query), make<double, 4>(in.key),
                               make<double, 4>(in.value), scaled_dot_product() | sink({1, -2}))),
           1e-14));
}

// One and two queries have a loop of their own, whose keys come in chunks of 1,024: the sink counts
// once.
TEST(Sink, OfFewQueries) {
  for (const Index queries : {1, 2, 3}) {
    for (const Index keys : {1, 300, 1024, 2500}) {
      const Sizes sizes{.batch = 2,
                        .heads = 4,
                        .key_heads = 2,
                        .queries = queries,
                        .keys = keys,
                        .dim = panel_lanes,
                        .width = 2 * simd_lanes};
      const std::vector<double> logits = {5, -3, 0, 9};
      expect_sink<float>(Inputs(sizes), scaled_dot_product() | sink(logits), no_mask(),
                         scaled_dot(), everything(), logits, 9);
      expect_sink<float>(
          Inputs(sizes), scaled_dot_product() | softcap(2) | sink(logits), causal(),
          [](const auto& p) { return 2 * std::tanh(scaled_dot()(p) / 2); },
          [=](Index, Index, Index i, Index j) { return j <= i + keys - queries; }, logits, 9);
    }
  }
}

TEST(Sink, InAChainUnderAMask) {
  const std::vector<double> logits = {5, -3, 0, 9};
  expect_sink<float>(
      Inputs({.batch = 2,
              .heads = 4,
              .key_heads = 2,
              .queries = 70,
              .keys = 230,
              .dim = 8,
              .width = 5}),
      gaussian(.5) | sink(logits) | softcap(2) | alibi({.1, .2, -.1, 0}), sliding_window(150, 0),
      [](const auto& p) {
        using Real = RealOf<decltype(p)>;
        const std::array<Real, 4> slopes = {Real(.1), Real(.2), Real(-.1), 0};
        return 2 * std::tanh(-squared_distance(p) / 16) +
               slopes[static_cast<std::size_t>(p.h)] * static_cast<Real>(p.j - p.i);
      },
      [](Index, Index, Index i, Index j) { return j <= i + 160 && j >= i + 10; }, logits, 24);
}

// Far above every score the sink takes all, far below it nothing; -infinity is none.
TEST(Sink, FarFromTheScores) {
  for (const Index queries : {Index(1), Index(40)}) {
    const Inputs in({.queries = queries, .keys = 50, .dim = panel_lanes, .width = 2 * simd_lanes});
    const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key),
               v = make<float, 4>(in.value);
    const auto plain = attention_forward(q, k, v);
    const auto above = attention_forward(q, k, v, scaled_dot_product() | sink({1e30}));
    EXPECT_TRUE(same(reference(above.output), constant(above.output.dimensions(), 0)));
    EXPECT_TRUE(same(reference_rows(above.log_sum_exp),
                     constant({1, 1, queries, 1}, static_cast<double>(1e30F))));
    for (const double below : {-1e30, -infinity}) {
      const auto pass = attention_forward(q, k, v, scaled_dot_product() | sink({below}));
      EXPECT_TRUE(near(reference(pass.output), reference(plain.output), 1e-6));
      EXPECT_TRUE(near(reference_rows(pass.log_sum_exp), reference_rows(plain.log_sum_exp), 1e-6));
    }
  }
}

TEST(Sink, OfAQueryWithoutKeys) {
  for (const Index queries : {Index(1), Index(40)}) {
    const Inputs in(
        {.batch = 2, .queries = queries, .keys = 50, .dim = panel_lanes, .width = 2 * simd_lanes});
    auto q = make<float, 4>(in.query), k = make<float, 4>(in.key), v = make<float, 4>(in.value);
    Vector<float> logits(1), dlogits(1);
    logits << 1.5F;
    dlogits << 0;
    const auto score = scaled_dot_product() | sink(logits, dlogits);
    const auto mask = valid_lens({0, 0});
    const auto pass = attention_forward(q, k, v, score, mask);
    EXPECT_TRUE(same(reference(pass.output), constant(pass.output.dimensions(), 0)));
    EXPECT_TRUE(same(reference_rows(pass.log_sum_exp), constant({2, 1, queries, 1}, 1.5)));
    const auto [output, weights] = attention_with_weights(q, k, v, score, mask);
    EXPECT_TRUE(same(reference(output), constant(output.dimensions(), 0)));
    EXPECT_TRUE(same(reference(weights), constant(weights.dimensions(), 0)));
    // Whatever the gradient of the output is, nothing depends on anything.
    const auto grad = make<float, 4>(constant(pass.output.dimensions(), nan));
    const auto gradients = attention_backward(q, k, v, pass, grad, score, mask);
    EXPECT_TRUE(same(reference(gradients.query), constant(q.dimensions(), 0)));
    EXPECT_TRUE(same(reference(gradients.key), constant(k.dimensions(), 0)));
    EXPECT_TRUE(same(reference(gradients.value), constant(v.dimensions(), 0)));
    EXPECT_EQ(dlogits(0), 0);
    // No keys at all.
    const auto none = attention_forward(q, Tensor<float, 4>(2, 1, 0, panel_lanes),
                                        Tensor<float, 4>(2, 1, 0, 3), score);
    EXPECT_TRUE(same(reference(none.output), constant({2, 1, queries, 3}, 0)));
    EXPECT_TRUE(same(reference_rows(none.log_sum_exp), constant({2, 1, queries, 1}, 1.5)));
  }
  // Of queries some of which see keys: causal, with more queries than keys.
  const std::vector<double> logits = {1, -2};
  expect_sink<double>(
      Inputs({.heads = 2, .key_heads = 1, .queries = 60, .keys = 20, .dim = 4, .width = 3}),
      scaled_dot_product() | sink(logits), causal(), scaled_dot(),
      [](Index, Index, Index i, Index j) { return j <= i - 40; }, logits);
}

// NaN reaches the query that sees it, and no other.
TEST(Sink, WhatIsVisibleAndNotFinite) {
  const Inputs in({.queries = 3, .keys = 9, .dim = 4, .width = 3});
  const auto q = make<float, 2>(in.query), v = make<float, 2>(in.value);
  auto k = make<float, 2>(in.key);
  k(8, 1) = std::numeric_limits<float>::quiet_NaN();
  const auto score = scaled_dot_product() | sink({100});
  for (const Matrix<float>& output : {attention(q, k, v, score, causal()),
                                      attention_with_weights(q, k, v, score, causal()).output}) {
    EXPECT_TRUE(output.topRows(2).allFinite());
    EXPECT_TRUE(output.row(2).array().isNaN().all());
  }
}

// The sink in one part alone; in both it would count twice.
TEST(Sink, OfMergedPasses) {
  const Inputs in({.heads = 2, .key_heads = 2, .queries = 7, .keys = 30, .dim = 8, .width = 5});
  const auto q = make<double, 4>(in.query);
  const auto part = [&](const Reference& x, Index first, Index last) {
    return make<double, 4>(rows(x, first, last));
  };
  const auto with = scaled_dot_product() | sink({1, 2});
  const auto whole = attention_forward(q, make<double, 4>(in.key), make<double, 4>(in.value), with);
  const auto merged = merge(attention_forward(q, part(in.key, 0, 11), part(in.value, 0, 11), with),
                            attention_forward(q, part(in.key, 11, 30), part(in.value, 11, 30)));
  EXPECT_TRUE(near(reference(merged.output), reference(whole.output), 1e-14));
  EXPECT_TRUE(near(reference_rows(merged.log_sum_exp), reference_rows(whole.log_sum_exp), 1e-14));
}

// ---------------------------------------------------------------- gradients

TEST(Sink, GradientsAreCentralDifferences) {
  Vector<double> logits = vector_of<double>(4, 5), dlogits(4);
  const auto parameters = trainable(logits, dlogits);
  check(scaled_dot_product() | sink(logits, dlogits), no_mask(), {parameters});
  check(gaussian(.8) | softcap(2) | sink(logits, dlogits) | alibi({.1, .2, .3, .4}), causal(),
        {parameters});
  // Not trained, the other gradients know of it all the same.
  check(scaled_dot_product() | sink(logits), causal());
  // Batch entry 0 sees nothing.
  check(scaled_dot_product() | sink(logits, dlogits), valid_lens({0, 4}), {parameters});
  // One query; and under dropout.
  expect_central_differences(
      Inputs(
          {.batch = 2, .heads = 4, .key_heads = 2, .queries = 1, .keys = 6, .dim = 3, .width = 2}),
      [&] { return scaled_dot_product() | sink(logits, dlogits); }, no_mask(), {parameters});
  expect_central_differences(Inputs(few),
                             [&] { return scaled_dot_product() | sink(logits, dlogits); }, causal(),
                             {parameters}, {.dropout = .3, .seed = 5});
}

/// A score that runs on numbers alone, so that the reference engines take it.
struct PlainDot : ScorePolicy {
  template <class Number>
  struct Bound {
    template <class T>
    T step(const T& sum, const T& q, const T& k, Index) const {
      return sum + q * k;
    }
    template <class T>
    T finish(const T& sum) const {
      return sum;
    }
  };
  template <class Number>
  auto bind(const Problem&) const {
    return Bound<Number>{};
  }
};

TEST(Sink, GradientsOfTheReferenceEngine) {
  Vector<double> logits = vector_of<double>(4, 5), dlogits(4);
  check(PlainDot() | sink(logits, dlogits), causal(), {trainable(logits, dlogits)});
}

// One key of value 0 whose score is given by a bias has the sink's gradients. Over panels and
// tiles.
TEST(Sink, GradientsAreThoseOfOneKeyMore) {
  const Index queries = 130, keys = 210;
  const Inputs in({.batch = 2,
                   .heads = 2,
                   .key_heads = 1,
                   .queries = queries,
                   .keys = keys,
                   .dim = 8,
                   .width = 6});
  Inputs more = in;
  more.key = with_zero_row(in.key);
  more.value = with_zero_row(in.value);
  Vector<double> logits(2), dlogits(2);
  logits << 1, 3;
  dlogits << 10, 20;
  Tensor<double, 4> added(1, 2, 1, keys + 1), dadded(1, 2, 1, keys + 1);
  added.setZero();
  dadded.setZero();
  for (Index h = 0; h < 2; ++h) added(0, h, 0, keys) = logits(h);
  const auto allowed = [=](Index, Index, Index i, Index j) { return j == keys || j <= i + 60; };
  const auto grad = grad_output_for(in);
  const auto expected = gradients_of<double>(more, grad, scaled_dot_product() | bias(added, dadded),
                                             mask_if(allowed));
  const auto actual = gradients_of<double>(in, grad, scaled_dot_product() | sink(logits, dlogits),
                                           sliding_window(-1, 60, Align::top_left));
  EXPECT_TRUE(near_relative(actual.query, expected.query, 1e-13));
  EXPECT_TRUE(near_relative(actual.key, rows(expected.key, 0, keys), 1e-13));
  EXPECT_TRUE(near_relative(actual.value, rows(expected.value, 0, keys), 1e-13));
  for (Index h = 0; h < 2; ++h) {
    EXPECT_NEAR(dlogits(h) - 10 * static_cast<double>(h + 1), dadded(0, h, 0, keys), 1e-12) << h;
  }
}

// ---------------------------------------------------------------- errors

TEST(Sink, RefusesWhatDoesNotFit) {
  const auto q = make<float, 4>(random({1, 2, 3, 4}, 1)),
             k = make<float, 4>(random({1, 2, 5, 4}, 2));
  const auto refused = [&](const auto& modifier, std::initializer_list<std::string> parts) {
    EXPECT_TRUE(refuses([&] { attention(q, k, k, dot_product() | modifier); }, parts));
    EXPECT_TRUE(refuses([&] { attention_with_weights(q, k, k, dot_product() | modifier); }, parts));
  };
  refused(sink({1, 2, 3}), {"heed::attention", "3 logits", "2 query heads"});
  refused(sink({1, infinity}), {"heed::attention", "query head 1"});
  refused(sink({nan, 1}), {"heed::attention", "query head 0"});
  refused(sink({1e300, 1}), {"heed::attention", "query head 0"});  // too large for float
  Vector<float> logits = Vector<float>::Zero(2), wrong = Vector<float>::Zero(3);
  const auto backward = [&](Vector<float>& dlogits) {
    const auto score = dot_product() | sink(logits, dlogits);
    const auto pass = attention_forward(q, k, k, score);
    attention_backward(q, k, k, pass, pass.output, score);
  };
  EXPECT_TRUE(refuses([&] { backward(wrong); },
                      {"heed::attention_backward", "the logits of sink", "(3)", "(2)"}));
  EXPECT_TRUE(refuses([&] { backward(logits); }, {"shares elements", "the logits of sink"}));
}

}  // namespace
}  // namespace heed::test
