#include <Eigen/Core>
#include <unsupported/Eigen/AutoDiff>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "backward_support.hpp"

namespace heed::test {
namespace {

// Two keys, one feature, scale 1: q = 1, k = (0, ln 3), so P = (1/4, 3/4). With v = (0, 4) and
// dO = 2: O = 3, delta = dO O = 6, dP = dO v = (0, 8), dS = P (dP - delta) = (-3/2, 3/2).
//   dV = P dO = (1/2, 3/2);  dK = dS q = (-3/2, 3/2);  dQ = dS . k = 3/2 ln 3.
TEST(AttentionBackward, TwoKeysByHand) {
  Matrix<double> q(1, 1), k(2, 1), v(2, 1), grad_output(1, 1);
  q << 1;
  k << 0, std::log(3.0);
  v << 0, 4;
  grad_output << 2;
  const auto pass = attention_forward(q, k, v, dot_product());
  const auto [dq, dk, dv] = attention_backward(q, k, v, pass, grad_output, dot_product());
  static_assert(std::is_same_v<decltype(dk), const Matrix<double>>);
  EXPECT_NEAR(dq(0, 0), 1.5 * std::log(3.0), 1e-14);
  EXPECT_NEAR(dk(0, 0), -1.5, 1e-14);
  EXPECT_NEAR(dk(1, 0), 1.5, 1e-14);
  EXPECT_NEAR(dv(0, 0), .5, 1e-14);
  EXPECT_NEAR(dv(1, 0), 1.5, 1e-14);
}

// With one key the weight is 1 whatever the score: no gradient but the value's.
TEST(AttentionBackward, AnOnlyKeyGivesItsValueAlone) {
  const Inputs in({.queries = 30, .keys = 1, .dim = 5, .width = 3});
  const auto grad_output = grad_output_for(in);
  const auto g = gradients_of<float>(in, grad_output, scaled_dot_product(), no_mask());
  EXPECT_TRUE(near(g.query, constant({1, 1, 30, 5}, 0), 1e-6));
  EXPECT_TRUE(near(g.key, constant({1, 1, 1, 5}, 0), 1e-5));
  const Reference sum = generate({1, 1, 1, 3}, [&](Index, Index, Index, Index c) {
    double total = 0;
    for (Index i = 0; i < 30; ++i) total += grad_output(0, 0, i, c);
    return total;
  });
  EXPECT_TRUE(near(g.value, sum, 1e-5));
}

// Types follow the inputs, each its own: rank, number type and storage order.
TEST(AttentionBackward, GradientsAreLikeTheirInputs) {
  const Inputs in({.batch = 2, .queries = 3, .keys = 4, .dim = 2, .width = 5});
  const auto q = make<float, 3, Eigen::ColMajor>(in.query);
  const auto k = make<Eigen::half, 3>(in.key);
  const auto v = make<Eigen::bfloat16, 3, Eigen::ColMajor>(in.value);
  const auto pass = attention_forward(q, k, v);
  const auto g = attention_backward(q, k, v, pass, pass.output);
  static_assert(std::is_same_v<decltype(g.query), Eigen::Tensor<float, 3, Eigen::ColMajor, Index>>);
  static_assert(std::is_same_v<decltype(g.key), Tensor<Eigen::half, 3>>);
  static_assert(
      std::is_same_v<decltype(g.value), Eigen::Tensor<Eigen::bfloat16, 3, Eigen::ColMajor, Index>>);
  Inputs rounded = in;
  rounded.key = test::rounded<Eigen::half>(in.key);
  rounded.value = test::rounded<Eigen::bfloat16>(in.value);
  const auto expected =
      gradients_of<double>(rounded, reference(pass.output), scaled_dot_product(), no_mask());
  EXPECT_TRUE(near(reference(g.query), expected.query, 1e-5));
  EXPECT_TRUE(near(reference(g.key), expected.key, epsilon<Eigen::half>()));
  EXPECT_TRUE(near(reference(g.value), expected.value, 2 * epsilon<Eigen::bfloat16>()));
}

TEST(AttentionBackward, AnyStridesAndViewsToWriteTo) {
  const Inputs in(
      {.batch = 2, .heads = 4, .key_heads = 2, .queries = 25, .keys = 49, .dim = 9, .width = 7});
  const auto grad_output = grad_output_for(in);
  const auto expected = gradients_of<float>(in, grad_output, scaled_dot_product(), causal());
  for (const auto& backwards : directions) {
    Scattered<float> q(in.query, backwards), k(in.key, backwards), v(in.value, backwards),
        g(grad_output, backwards);
    const auto pass =
        attention_forward(q.view(), k.view(), v.view(), scaled_dot_product(), causal());
    Scattered<float> dq(in.query, backwards), dk(in.key, backwards), dv(in.value, backwards);
    const Index written = dq.written() + dk.written() + dv.written();
    attention_backward_into(AttentionGradients{dq.view(), dk.view(), dv.view()}, q.view(), k.view(),
                            v.view(), pass, g.view(), scaled_dot_product(), causal());
    EXPECT_EQ(dq.written() + dk.written() + dv.written(), written);
    expect_near({reference(dq.view()), reference(dk.view()), reference(dv.view())}, expected,
                gradient_bound<float>());
  }
}

TEST(AttentionBackward, ThreadsDoNotChangeABit) {
  const Sizes one_head = {.queries = 800, .keys = 130, .dim = 8, .width = 9},
              many = {.batch = 2,
                      .heads = 6,
                      .key_heads = 3,
                      .queries = 100,
                      .keys = 97,
                      .dim = 8,
                      .width = 8};
  for (const Sizes& sizes : {one_head, many}) {
    const Inputs in(sizes);
    const auto grad_output = grad_output_for(in);
    const Vector<float> slopes = vector_of<float>(sizes.heads, 3);
    const Matrix<float> pairs = make<float, 2>(random({1, 1, sizes.queries, sizes.keys}, 5));
    struct Result {
      GradientReferences inputs;
      Vector<float> slopes;
      Matrix<float> pairs;
    };
    const auto at = [&](Eigen::ThreadPoolInterface* pool) {
      Result r{
          {}, Vector<float>::Zero(sizes.heads), Matrix<float>::Zero(sizes.queries, sizes.keys)};
      r.inputs = gradients_of<float>(
          in, grad_output, scaled_dot_product() | alibi(slopes, r.slopes) | bias(pairs, r.pairs),
          causal(), {.dropout = .1, .seed = 3, .pool = pool});
      return r;
    };
    const Result alone = at(nullptr);
    for (int threads : {1, 2, 3}) {
      Eigen::ThreadPool pool(threads);
      const Result together = at(&pool);
      EXPECT_TRUE(same(together.inputs.query, alone.inputs.query));
      EXPECT_TRUE(same(together.inputs.key, alone.inputs.key));
      EXPECT_TRUE(same(together.inputs.value, alone.inputs.value));
      EXPECT_TRUE((together.slopes.array() == alone.slopes.array()).all());
      EXPECT_TRUE((together.pairs.array() == alone.pairs.array()).all());
    }
  }
}

TEST(AttentionBackward, NothingIsLegal) {
  for (const Sizes& sizes :
       {Sizes{.queries = 3, .keys = 0, .dim = 2, .width = 2},
        Sizes{.queries = 0, .keys = 3, .dim = 2, .width = 2},
        Sizes{.batch = 0, .queries = 3, .keys = 3, .dim = 2, .width = 2},
        Sizes{.heads = 0, .key_heads = 0, .queries = 3, .keys = 3, .dim = 2, .width = 2}}) {
    const Inputs in(sizes);
    const auto g = gradients_of<float>(in, grad_output_for(in), scaled_dot_product(), no_mask());
    EXPECT_TRUE(same(g.query, constant(in.query.dimensions(), 0)));
    EXPECT_TRUE(same(g.key, constant(in.key.dimensions(), 0)));
    EXPECT_TRUE(same(g.value, constant(in.value.dimensions(), 0)));
  }
}

// An independent witness: attention itself on numbers that carry a derivative along one direction
// of all inputs at once, against the gradients' product with that direction.
TEST(AttentionBackward, AgreesWithAutomaticDifferentiationOfTheForwardPass) {
  using Dual = Eigen::AutoDiffScalar<Eigen::Matrix<double, 1, 1>>;
  const Inputs in({.heads = 2, .queries = 5, .keys = 7, .dim = 3, .width = 2});
  const auto grad_output = grad_output_for(in);
  const auto lift = [](const Reference& x, const Reference& direction) {
    Tensor<Dual, 4> result(x.dimensions());
    for (Index n = 0; n < x.size(); ++n) {
      result.data()[n] = Dual(x.data()[n], Eigen::Matrix<double, 1, 1>(direction.data()[n]));
    }
    return result;
  };
  const Reference dq = random(in.query.dimensions(), 21), dk = random(in.key.dimensions(), 22),
                  dv = random(in.value.dimensions(), 23);
  const auto q = lift(in.query, dq), k = lift(in.key, dk), v = lift(in.value, dv);
  const auto weights = lift(grad_output, constant(grad_output.dimensions(), 0));
  const auto compare = [&](const auto& score) {
    const auto pass = attention_forward(q, k, v, score, causal());
    Dual loss(0.0);
    for (Index n = 0; n < weights.size(); ++n) loss += pass.output.data()[n] * weights.data()[n];
    const auto g = gradients_of<double>(in, grad_output, score, causal());
    double expected = 0;
    for (Index n = 0; n < dq.size(); ++n) expected += g.query.data()[n] * dq.data()[n];
    for (Index n = 0; n < dk.size(); ++n) expected += g.key.data()[n] * dk.data()[n];
    for (Index n = 0; n < dv.size(); ++n) expected += g.value.data()[n] * dv.data()[n];
    EXPECT_NEAR(loss.derivatives()(0), expected, 1e-12);

    // The backward pass on such numbers: the same gradients, by the reference engine.
    const auto lifted = attention_backward(q, k, v, pass, weights, score, causal());
    for (Index n = 0; n < dk.size(); ++n) {
      EXPECT_NEAR(lifted.key.data()[n].value(), g.key.data()[n], 1e-13);
    }
  };
  compare(scaled_dot_product() | softcap(2));
  compare(gaussian(.7));
  compare(additive(vector_of<double>(3, 4)));
}

TEST(AttentionBackward, SaysWhatDoesNotFit) {
  const Matrix<float> q = Matrix<float>::Zero(3, 2), k = Matrix<float>::Zero(4, 2),
                      v = Matrix<float>::Zero(4, 5);
  const auto pass = attention_forward(q, k, v);
  const Matrix<float> right = pass.output, wrong = Matrix<float>::Zero(3, 4);
  EXPECT_TRUE(refuses([&] { attention_backward(q, k, v, pass, wrong); },
                      {"attention_backward", "grad_output", "(3, 4)", "(3, 5)"}));
  const auto other = attention_forward(k, k, v);
  EXPECT_TRUE(refuses([&] { attention_backward(q, k, v, other, right); },
                      {"attention_backward", "pass.output", "(4, 5)", "(3, 5)", "other inputs"}));
  auto short_pass = pass;
  short_pass.log_sum_exp.resize(2);
  EXPECT_TRUE(refuses([&] { attention_backward(q, k, v, short_pass, right); },
                      {"pass.log_sum_exp", "(2)", "(3)"}));

  AttentionGradients<Matrix<float>, Matrix<float>, Matrix<float>> g{q, k, wrong};
  EXPECT_TRUE(refuses([&] { attention_backward_into(g, q, k, v, pass, right); },
                      {"attention_backward_into", "gradients.value", "(3, 4)", "(4, 5)"}));

  Vector<float> w = Vector<float>::Ones(2), dw = Vector<float>::Ones(3);
  EXPECT_TRUE(refuses([&] { attention_backward(q, k, v, pass, right, additive(w, dw)); },
                      {"weights of the additive score", "(3)", "(2)"}));
  EXPECT_TRUE(refuses([&] { attention_backward(q, k, v, pass, right, additive(w, w)); },
                      {"the gradient of a parameter", "shares elements"}));
  Matrix<float> t = Matrix<float>::Ones(3, 4), dt = Matrix<float>::Ones(1, 4);
  EXPECT_TRUE(
      refuses([&] { attention_backward(q, k, v, pass, right, scaled_dot_product() | bias(t, dt)); },
              {"tensor of bias", "(1, 1, 1, 4)", "(1, 1, 3, 4)"}));
}

TEST(AttentionBackward, RefusesSharedMemoryBeforeWriting) {
  const auto filled = [](Index rows, Index columns) {
    return Matrix<float>(Matrix<float>::Constant(rows, columns, 2));
  };
  Matrix<float> q = filled(4, 2), k = filled(4, 2), v = filled(4, 2), grad = filled(4, 2);
  auto pass = attention_forward(q, k, v);
  Matrix<float> a = filled(4, 2), b = filled(4, 2), c = filled(4, 2);
  const auto into = [&](Matrix<float>& dq, Matrix<float>& dk, Matrix<float>& dv) {
    attention_backward_into(AttentionGradients{view(dq), view(dk), view(dv)}, q, k, v, pass, grad);
  };
  EXPECT_TRUE(refuses([&] { into(q, b, c); }, {"gradients.query", "shares elements with query"}));
  EXPECT_TRUE(refuses([&] { into(a, v, c); }, {"gradients.key", "shares elements with value"}));
  EXPECT_TRUE(refuses([&] { into(a, b, grad); }, {"gradients.value", "grad_output"}));
  EXPECT_TRUE(refuses([&] { into(pass.output, b, c); }, {"gradients.query", "pass.output"}));
  EXPECT_TRUE(refuses([&] { into(a, b, b); }, {"gradients.key", "gradients.value"}));
  EXPECT_TRUE(refuses([&] { into(a, a, c); }, {"gradients.query", "gradients.key"}));
  for (const Matrix<float>* x : {&q, &k, &v, &grad, &a, &b, &c}) {
    EXPECT_TRUE((x->array() == 2).all());
  }
}

}  // namespace
}  // namespace heed::test
