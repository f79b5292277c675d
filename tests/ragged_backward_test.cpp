#include "heed/engine/ragged.hpp"

#include <memory>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "allocation_support.hpp"
#include "ragged_support.hpp"

namespace heed::test {
namespace {

constexpr Index heads = 4, key_heads = 2;

/// Tokens of sequences, and the gradient of the output.
template <class Scalar>
struct Inputs {
  Lengths queries, keys;
  Tensor<Scalar, 3> query, key, value, grad;
  std::vector<Index> query_offsets = offsets_of(queries), key_offsets = offsets_of(keys);

  Inputs(Lengths of_queries, Lengths of_keys, Index dim, Index width)
      : queries(std::move(of_queries)), keys(std::move(of_keys)) {
    const auto batch = static_cast<Index>(queries.size());
    const Index q = longest(queries), k = longest(keys);
    query = packed<Scalar>(random({batch, heads, q, dim}, 1), queries);
    key = packed<Scalar>(random({batch, key_heads, k, dim}, 2), keys);
    value = packed<Scalar>(random({batch, key_heads, k, width}, 3), keys);
    grad = packed<Scalar>(random({batch, heads, q, width}, 4), queries);
  }

  template <class S, class M>
  auto pass(const S& score, const M& mask, const AttentionOptions& options = {}) const {
    return attention_forward(ragged(query, query_offsets), ragged(key, key_offsets),
                             ragged(value, key_offsets), score, mask, options);
  }
  template <class S, class M>
  auto gradients(const S& score, const M& mask, const AttentionOptions& options = {}) const {
    return attention_backward(ragged(query, query_offsets), ragged(key, key_offsets),
                              ragged(value, key_offsets), pass(score, mask, options), grad, score,
                              mask, options);
  }
};

/// The gradients of each sequence by a call of its own; score_of(b) and mask_of(b) are what the
/// call for sequence b is given.
template <class Scalar, class ScoreOf, class MaskOf>
auto separately(const Inputs<Scalar>& in, const ScoreOf& score_of, const MaskOf& mask_of) {
  AttentionGradients all{in.query, in.key, in.value};
  for (std::size_t b = 0; b < in.queries.size(); ++b) {
    const auto q = sequence(in.query, in.queries, b), k = sequence(in.key, in.keys, b),
               v = sequence(in.value, in.keys, b), g = sequence(in.grad, in.queries, b);
    const auto score = score_of(static_cast<Index>(b));
    const auto mask = mask_of(static_cast<Index>(b));
    const auto pass = attention_forward(q, k, v, score, mask);
    attention_backward_into(
        AttentionGradients{sequence(all.query, in.queries, b), sequence(all.key, in.keys, b),
                           sequence(all.value, in.keys, b)},
        q, k, v, pass, g, score, mask);
  }
  return all;
}

template <class A, class B>
void expect_near(const A& actual, const B& expected, double bound) {
  EXPECT_TRUE(near(reference(actual.query), reference(expected.query), bound));
  EXPECT_TRUE(near(reference(actual.key), reference(expected.key), bound));
  EXPECT_TRUE(near(reference(actual.value), reference(expected.value), bound));
}

const Lengths some_queries{1, 0, 17, 2, 5, 49, 7, 1, 31},
    some_keys{1, 4, 17, 40, 0, 211, 3, 90, 31};

template <class Scalar>
const Inputs<Scalar>& mixed() {
  static const Inputs<Scalar> in(some_queries, some_keys, 16, 12);
  return in;
}

TEST(RaggedBackward, GivesWhatSeparateCallsGive) {
  const auto sdpa = [](Index) { return scaled_dot_product(); };
  const auto bottom_right = [](Index) { return causal(); };
  const auto& in = mixed<float>();
  const auto expected = separately(in, sdpa, bottom_right);
  for (const int threads : {0, 1, 2, 5}) {
    const auto pool = threads > 0 ? std::make_unique<Eigen::ThreadPool>(threads) : nullptr;
    const auto gradients = in.gradients(sdpa(0), causal(), {.pool = pool.get()});
    expect_near(gradients, expected, 0);
  }
  const std::vector<Index> lens{1, 3, 9, 33, 0, 150, 0, 89, 30};
  expect_near(in.gradients(sdpa(0), valid_lens(lens)),
              separately(in, sdpa,
                         [&](Index b) { return valid_lens({lens[static_cast<std::size_t>(b)]}); }),
              1e-6);
  const Inputs<double> exact({3, 1, 0, 40}, {7, 0, 2, 40}, 5, 3);
  const auto capped = [](Index) { return scaled_dot_product() | softcap(3); };
  expect_near(exact.gradients(capped(0), causal()), separately(exact, capped, bottom_right), 1e-14);
}

TEST(RaggedBackward, OtherNumbersGoByTheDefinition) {
  const Lengths queries{3, 1, 0, 4}, keys{5, 0, 2, 4};
  const Inputs<long double> in(queries, keys, 3, 2);
  const auto gradients = in.gradients(scaled_dot_product(), causal());
  const Inputs<double> narrow(queries, keys, 3, 2);
  expect_near(narrow.gradients(scaled_dot_product(), causal()), gradients, 1e-14);
}

TEST(RaggedBackward, ALongSequenceAmongShortOnesIsSharedByThreads) {
  Lengths lengths{3, 1000, 1, 20, 8};
  const Inputs<float> in(lengths, lengths, 16, 12);
  const auto score = scaled_dot_product();
  const auto alone = in.gradients(score, causal());
  expect_near(alone,
              separately(in, [&](Index) { return score; }, [](Index) { return causal(); }), 2e-6);
  for (const int threads : {1, 2, 5}) {
    Eigen::ThreadPool pool(threads);
    expect_near(in.gradients(score, causal(), {.pool = &pool}), alone, 0);
  }
}

/// d loss / d x by central differences, of loss = sum over dO output.
template <class S, class M, class X>
void expect_slope(const Inputs<double>& in, const S& score, const M& mask, X& x,
                  const AttentionOptions& options, const X& gradient) {
  for (Index n = 0; n < x.size(); ++n) {
    const double at = x.data()[n], step = 1e-6;
    const auto loss = [&](double moved) {
      x.data()[n] = moved;
      const auto output = in.pass(score, mask, options).output;
      double sum = 0;
      for (Index m = 0; m < output.size(); ++m) sum += output.data()[m] * in.grad.data()[m];
      return sum;
    };
    const double slope = (loss(at + step) - loss(at - step)) / (2 * step);
    x.data()[n] = at;
    const double error = std::abs(gradient.data()[n] - slope);
    EXPECT_TRUE(error <= 1e-7) << n << ": " << gradient.data()[n] << " and not " << slope;
  }
}

TEST(RaggedBackward, AgreesWithCentralDifferences) {
  Inputs<double> in({2, 0, 4, 3}, {3, 2, 4, 0}, 3, 2);
  Matrix<double> table = make<double, 2>(random({1, 1, heads, 5}, 5)), d_table(heads, 5);
  Tensor<double, 4> added = make<double, 4>(random({4, 1, 4, 4}, 6)), d_added(4, 1, 4, 4);
  Vector<double> logits(heads), d_logits(heads), width(3), d_width(3);
  logits << .5, -1, 0, 2;
  width << .8, .9, 1.1;
  for (auto* x : {&d_logits, &d_width}) x->setZero();
  d_table.setZero();
  d_added.setZero();
  const auto bucket = [](Index distance) { return ((distance % 5) + 5) % 5; };
  const AttentionOptions options{.dropout = .3, .seed = 3};
  const auto mask = sliding_window(2, 1);
  const auto score = gaussian(width, d_width) | softcap(2) | bias(added, d_added) |
                     relative_bias(table, bucket, d_table) | sink(logits, d_logits);
  const auto gradients = in.gradients(score, mask, options);
  expect_slope(in, score, mask, in.query, options, gradients.query);
  expect_slope(in, score, mask, in.key, options, gradients.key);
  expect_slope(in, score, mask, in.value, options, gradients.value);
  expect_slope(in, score, mask, table, options, d_table);
  expect_slope(in, score, mask, added, options, d_added);
  expect_slope(in, score, mask, logits, options, d_logits);
  expect_slope(in, score, mask, width, options, d_width);
}

TEST(RaggedBackward, ParametersAddUpOverSequences) {
  const auto& in = mixed<float>();
  const Vector<float> w = Vector<float>::LinSpaced(16, -1, 1);
  Vector<float> dw = Vector<float>::Constant(16, 2), expected_dw = dw;
  const auto bottom_right = [](Index) { return causal(); };
  const auto expected =
      separately(in, [&](Index) { return additive(w, expected_dw); }, bottom_right);
  expect_near(in.gradients(additive(w, dw), causal()), expected, 1e-6);
  EXPECT_LE((dw - expected_dw).cwiseAbs().maxCoeff(), 1e-5 * expected_dw.cwiseAbs().maxCoeff());
  for (const int threads : {2, 5}) {
    Eigen::ThreadPool pool(threads);
    Vector<float> again = Vector<float>::Constant(16, 2);
    in.gradients(additive(w, again), causal(), {.pool = &pool});
    EXPECT_TRUE((again.array() == dw.array()).all());
  }
  // One bias for all sequences: they add to it one after another.
  const auto t = make<float, 2>(random({1, 1, 49, 211}, 9));
  Matrix<float> dt(49, 211), expected_dt(49, 211);
  dt.setZero();
  expected_dt.setZero();
  const auto part_of = [&](auto& x, Index b) {
    const auto n = static_cast<std::size_t>(b);
    View<float, 2> part = view(x);
    part.shape = {in.queries[n], in.keys[n]};
    return part;
  };
  Matrix<float> values = t;
  const auto biased = separately(
      in,
      [&](Index b) {
        return scaled_dot_product() | bias(part_of(values, b), part_of(expected_dt, b));
      },
      bottom_right);
  expect_near(in.gradients(scaled_dot_product() | bias(t, dt), causal()), biased, 1e-6);
  EXPECT_LE((dt - expected_dt).cwiseAbs().maxCoeff(), 1e-5);
  for (const int threads : {2, 5}) {
    Eigen::ThreadPool pool(threads);
    Matrix<float> again = Matrix<float>::Zero(49, 211);
    in.gradients(scaled_dot_product() | bias(t, again), causal(), {.pool = &pool});
    EXPECT_TRUE((again.array() == dt.array()).all());
  }
}

TEST(RaggedBackward, WhatAMaskHidesNeverMatters) {
  Inputs<float> in = mixed<float>();
  const std::vector<Index> lens{1, 3, 9, 33, 0, 150, 0, 89, 30};
  const auto expected = in.gradients(scaled_dot_product(), valid_lens(lens));
  for (std::size_t b = 0; b < lens.size(); ++b) {
    for (Index t = in.key_offsets[b] + lens[b]; t < in.key_offsets[b + 1]; ++t) {
      for (Index h = 0; h < key_heads; ++h) {
        for (Index c = 0; c < 16; ++c) in.key(t, h, c) = std::numeric_limits<float>::infinity();
        for (Index c = 0; c < 12; ++c) in.value(t, h, c) = std::numeric_limits<float>::quiet_NaN();
        for (Index c = 0; c < 16; ++c) EXPECT_EQ(expected.key(t, h, c), 0);
      }
    }
  }
  expect_near(in.gradients(scaled_dot_product(), valid_lens(lens)), expected, 1e-6);
}

TEST(RaggedBackward, MatricesOfOneHead) {
  Matrix<double> q(2, 1), k(3, 1), v(3, 1), g(2, 1);
  // Sequence 0: one key, whose weight is 1: dV = dO = 3, dQ = dK = 0. Sequence 1: query 0 and
  // keys 2, 1 of values 5, 1: weights 1/2, delta = 3 dO, dS = dO (v - 3) / 2 = dO, -dO;
  // dQ = dO (2 - 1) = 4, dK = 0, dV = dO / 2.
  q << 7, 0;
  k << 1, 2, 1;
  v << 9, 5, 1;
  g << 3, 4;
  const auto rq = ragged(q, {0, 1, 2}), rk = ragged(k, {0, 1, 3}), rv = ragged(v, {0, 1, 3});
  const auto pass = attention_forward(rq, rk, rv, dot_product());
  const auto gradients = attention_backward(rq, rk, rv, pass, ragged(g, {0, 1, 2}), dot_product());
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(gradients.query)>, Matrix<double>>);
  EXPECT_TRUE(gradients.query.isApprox(Matrix<double>{{0}, {4}}, 1e-14));
  EXPECT_TRUE((gradients.key.array().abs() <= 1e-14).all());
  EXPECT_TRUE(gradients.value.isApprox(Matrix<double>{{3}, {2}, {2}}, 1e-14));
}

TEST(RaggedBackward, EmptyBatches) {
  const Tensor<float, 3> none(0, 2, 4);
  Tensor<float, 3> some(3, 2, 4);
  some.setConstant(1);
  const auto rn = ragged(none, {0});
  EXPECT_EQ(attention_backward(rn, rn, rn, attention_forward(rn, rn, rn), none).key.size(), 0);
  // Keys that no query is there to see.
  const auto rq = ragged(none, {0, 0});
  const auto rk = ragged(some, {0, 3});
  const auto gradients = attention_backward(rq, rk, rk, attention_forward(rq, rk, rk), none);
  for (Index n = 0; n < some.size(); ++n) {
    EXPECT_EQ(gradients.key.data()[n], 0);
    EXPECT_EQ(gradients.value.data()[n], 0);
  }
  // Queries without keys.
  const auto back = attention_backward(rk, rq, rq, attention_forward(rk, rq, rq), some);
  for (Index n = 0; n < some.size(); ++n) EXPECT_EQ(back.query.data()[n], 0);
}

TEST(RaggedBackward, RefusesAPassOfOtherInputsAndWritesIntoWhatFits) {
  const auto& in = mixed<float>();
  const auto rq = ragged(in.query, in.query_offsets), rk = ragged(in.key, in.key_offsets),
             rv = ragged(in.value, in.key_offsets);
  const auto score = scaled_dot_product();
  const auto pass = in.pass(score, causal());
  const Tensor<float, 3> shorter(in.grad.dimension(0) - 1, heads, 12);
  EXPECT_TRUE(
      refuses([&] { attention_backward(rq, rk, rv, pass, shorter, score, causal()); },
              {"attention_backward", "grad_output has shape (112, 4, 12)", "(113, 4, 12)"}));
  auto other = pass;
  other.log_sum_exp.resize(4, in.grad.dimension(0));
  EXPECT_TRUE(refuses([&] { attention_backward(rq, rk, rv, other, in.grad, score, causal()); },
                      {"pass.log_sum_exp has shape (4, 113)", "(113, 4)"}));
  EXPECT_TRUE(refuses(
      [&] {
        attention_backward(rq, rk, rv, pass, ragged(in.grad, {0, in.grad.dimension(0)}), score,
                           causal());
      },
      {"grad_output and query differ in batch", "1 and 9 sequences"}));
  const auto expected = in.gradients(score, causal());
  AttentionGradients into{in.query, in.key, in.value};
  const auto call = [&] {
    attention_backward_into(into, rq, rk, rv, pass, in.grad, score, causal());
  };
  call();
  expect_near(into, expected, 0);
#ifdef HEED_TEST_COUNTS_ALLOCATIONS
  EXPECT_EQ(allocations_of(call), 0);
#endif
}

}  // namespace
}  // namespace heed::test
