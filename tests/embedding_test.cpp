#include "heed/embedding.hpp"

#include <unsupported/Eigen/CXX11/ThreadPool>

#include "allocation_support.hpp"
#include "module_support.hpp"

namespace heed::test {
namespace {

Embedding<double> small() {
  Embedding<double> embedding(3, 2);
  embedding.weight << 1, 2, 10, 20, 100, 200;
  return embedding;
}

TEST(Embedding, ByHand) {
  const auto embedding = small();
  Matrix<double> rows(4, 2);
  rows << 100, 200, 1, 2, 100, 200, 10, 20;
  EXPECT_TRUE(same(reference(embedding(std::vector<int>{2, 0, 2, 1})), reference(rows)));
  EXPECT_TRUE(same(reference(embedding(Eigen::Vector4i(2, 0, 2, 1))), reference(rows)));
  Matrix<std::int64_t> ids(2, 2);
  ids << 2, 0, 2, 1;
  const auto expected = Eigen::TensorMap<Tensor<double, 3>>(rows.data(), 2, 2, 2);
  const auto result = embedding(ids);
  static_assert(std::is_same_v<decltype(result), const Tensor<double, 3>>);
  EXPECT_TRUE(same(reference(result), reference(expected)));
  Eigen::Tensor<unsigned char, 2> column_major(2, 2);
  column_major.setValues({{2, 0}, {2, 1}});
  EXPECT_TRUE(same(reference(embedding(column_major)), reference(expected)));
}

TEST(Embedding, IntoAViewAndWidened) {
  Embedding<Eigen::bfloat16> embedding(30, 20, 1);
  const std::vector<Index> ids{7, 29, 0, 7};
  const auto narrow = embedding(ids);
  static_assert(std::is_same_v<detail::ScalarOf<decltype(narrow)>, Eigen::bfloat16>);
  const auto wide = embedding.lookup<float>(ids);
  static_assert(std::is_same_v<detail::ScalarOf<decltype(wide)>, float>);
  EXPECT_TRUE(same(reference(wide), reference(narrow)));
  Eigen::MatrixXf turned(4, 20);
  embedding.into(turned, ids);
  EXPECT_TRUE(same(reference(turned), reference(narrow)));
}

TEST(Embedding, OfNothing) {
  EXPECT_EQ(small()(std::vector<int>{}).cols(), 2);
  EXPECT_EQ((Embedding<float>(3, 0)(std::vector<int>{2, 2}).rows()), 2);
  EXPECT_EQ((Embedding<float>(0, 3)(Matrix<int>(2, 0)).dimension(0)), 2);
  EXPECT_EQ(small().logits(Matrix<double>(0, 2)).cols(), 3);
}

TEST(Embedding, RefusesWhatDoesNotFit) {
  auto embedding = small();
  EXPECT_TRUE(refuses([&] { embedding(std::vector<int>{0, 1, 3}); },
                      {"heed::Embedding", "id 3 at 2", "0 to 2"}));
  Matrix<int> ids(2, 2);
  ids << 0, 1, -1, 2;
  EXPECT_TRUE(refuses([&] { embedding(ids); }, {"heed::Embedding", "id -1 at (1, 0)"}));
  Matrix<double> out(3, 2);
  EXPECT_TRUE(refuses([&] { embedding.into(out, std::vector<int>{1, 2}); },
                      {"heed::Embedding", "(3, 2)", "(2, 2)"}));
  EXPECT_TRUE(refuses([&] { embedding.into(embedding.weight, std::vector<int>{1, 2, 0}); },
                      {"heed::Embedding", "shares"}));
  EXPECT_TRUE(refuses([&] { embedding.logits(Matrix<double>(4, 3)); },
                      {"heed::Embedding::logits", "3", "2"}));
  EXPECT_TRUE(refuses([] { Embedding<float>(-1, 4); }, {"heed::Embedding", "-1"}));
  const std::vector<int> two{1, 2};
  const auto pass = embedding.forward(two);
  EXPECT_TRUE(refuses([&] { embedding.backward(pass, out); }, {"heed::Embedding::backward", "3"}));
  embedding.weight.resize(2, 2);
  EXPECT_TRUE(refuses([&] { embedding.backward(pass, pass.output); }, {"id 2 at 1"}));
}

// Token 2 stands at places 0 and 2, token 1 nowhere.
TEST(EmbeddingBackward, AddsRows) {
  const auto embedding = small();
  const std::vector<int> ids{2, 0, 2};
  Matrix<double> grad(3, 2), expected(3, 2);
  grad << 1, 2, 3, 4, 5, 6;
  expected << 3, 4, 0, 0, 6, 8;
  const auto result = embedding.backward(embedding.forward(ids), grad);
  EXPECT_EQ(result.parameters.weight, expected);
}

TEST(EmbeddingBackward, OfManyOnThreads) {
  const Embedding<float> embedding(17, 130, 1);
  Matrix<int> ids(4, 50);
  for (Index i = 0; i < ids.size(); ++i) ids.data()[i] = static_cast<int>(i * i % 17);
  const auto grad = make<float, 3>(random({4, 1, 50, 130}, 2));
  Matrix<double> sum = Matrix<double>::Zero(17, 130);
  for (Index b = 0; b < 4; ++b) {
    for (Index i = 0; i < 50; ++i) {
      for (Index c = 0; c < 130; ++c) sum(ids(b, i), c) += static_cast<double>(grad(b, i, c));
    }
  }
  Eigen::ThreadPool pool(3);
  const auto alone = embedding.backward(embedding.forward(ids), grad),
             shared = embedding.backward(embedding.forward(ids, &pool), grad);
  EXPECT_TRUE(near(reference(alone.parameters.weight), reference(sum), 1e-5));
  EXPECT_EQ(alone.parameters.weight, shared.parameters.weight);
  // Halves are summed in float: 2049 = 2048 + 1 is no half, 2050 = 2048 + 1 + 1 is.
  const Embedding<Eigen::half> narrow(1, 1);
  const std::vector<int> same_token{0, 0, 0};
  Matrix<float> ones(3, 1);
  ones << 2048, 1, 1;
  const auto result = narrow.backward(narrow.forward(same_token), ones);
  EXPECT_EQ(number(result.parameters.weight(0, 0)), 2050);
}

TEST(Embedding, LogitsAreProductsWithEveryToken) {
  const auto embedding = small();
  Matrix<double> x(2, 2), y(2, 3);
  x << 1, 1, -1, 2;
  y << 3, 30, 300, 3, 30, 300;
  EXPECT_TRUE(same(reference(embedding.logits(x)), reference(y)));
  const Embedding<Eigen::bfloat16> narrow(40, 24, 3);
  const auto many = make<float, 3>(random({2, 1, 30, 24}, 1));
  const Reference expected =
      projected(Linear<Eigen::bfloat16>{narrow.weight, {}}, random({2, 1, 30, 24}, 1));
  EXPECT_TRUE(near(reference(narrow.logits(many)), expected, 1e-5));
}

TEST(Embedding, LogitsBackwardAgreesWithCentralDifferences) {
  Embedding<double> embedding(5, 3, 1);
  auto x = make<double, 3>(random({2, 1, 2, 3}, 1));
  const Reference weights = random({2, 1, 2, 5}, 2);
  const auto gradients = embedding.logits_backward(x, make<double, 3>(weights));
  const auto loss = [&] { return weighted(embedding.logits(x), weights); };
  expect_slopes(x, gradients.input, loss, "input");
  for_each_parameter(embedding, gradients.parameters, [&](auto& value, const auto& gradient) {
    expect_slopes(value, gradient, loss, "weight");
  });
}

TEST(Embedding, StartsWithVarianceOne) {
  const Embedding<float> embedding(300, 50, 4);
  EXPECT_NEAR(embedding.weight.mean(), 0, .05);
  EXPECT_NEAR(embedding.weight.squaredNorm() / 15000, 1, .05);
}

#ifdef HEED_TEST_COUNTS_ALLOCATIONS
TEST(Embedding, ASecondCallAllocatesNothing) {
  const Embedding<Eigen::bfloat16> embedding(50, 20, 1);
  const std::vector<int> ids{3, 4, 49};
  Eigen::MatrixXf x(3, 20), y(3, 50);
  const auto call = [&] {
    embedding.into(x, ids);
    embedding.logits_into(y, x);
  };
  call();
  EXPECT_EQ(allocations_of(call), 0);
}
#endif

}  // namespace
}  // namespace heed::test
