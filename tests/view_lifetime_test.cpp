#include "heed/attention.hpp"
#include "score_support.hpp"

/// What policies keep of their arguments.
namespace heed::test {
namespace {

/// Attention under a policy made from a block of `memory`, with the block's numbers overwritten
/// before the policy is used.
template <class Memory, class Make, class Attend>
auto after_overwriting(Memory memory, const Make& make_policy, const Attend& attend) {
  const auto policy = make_policy(memory);
  memory.setZero();
  return reference(attend(policy));
}

struct Policies : ::testing::Test {
  const Matrix<float> q = make<float, 2>(random({1, 1, 5, 3}, 1)),
                      k = make<float, 2>(random({1, 1, 7, 3}, 2)),
                      v = make<float, 2>(random({1, 1, 7, 4}, 3)),
                      numbers = make<float, 2>(random({1, 1, 9, 9}, 4));
  const Matrix<bool> booleans = (numbers.array() > -.3F).matrix();
  const Matrix<int> integers = (numbers.array() * 3).cast<int>().abs().matrix();

  auto score() const {
    return [this](const auto& s) { return attention(q, k, v, s); };
  }
  auto modifier() const {
    return [this](const auto& m) { return attention(q, k, v, scaled_dot_product() | m); };
  }
  auto mask() const {
    return [this](const auto& m) { return attention(q, k, v, scaled_dot_product(), m); };
  }
};

TEST_F(Policies, KeepTheElementsOfATemporaryBlock) {
  const Matrix<float> square = numbers.block(1, 2, 5, 7), matrix = numbers.block(1, 2, 3, 3);
  const Vector<float> three = numbers.block(1, 2, 3, 1), one = numbers.block(1, 2, 1, 1);
  EXPECT_TRUE(same(after_overwriting(
                       numbers, [](auto& m) { return bias(m.block(1, 2, 5, 7)); }, modifier()),
                   reference(modifier()(bias(square)))));
  EXPECT_TRUE(same(after_overwriting(
                       numbers, [](auto& m) { return alibi(m.col(2).segment(1, 1)); }, modifier()),
                   reference(modifier()(alibi(one)))));
  EXPECT_TRUE(same(after_overwriting(
                       numbers, [](auto& m) { return bilinear(m.block(1, 2, 3, 3)); }, score()),
                   reference(score()(bilinear(matrix)))));
  EXPECT_TRUE(same(after_overwriting(
                       numbers, [](auto& m) { return additive(m.col(2).segment(1, 3)); }, score()),
                   reference(score()(additive(three)))));
  EXPECT_TRUE(same(after_overwriting(
                       numbers, [](auto& m) { return gaussian(m.col(2).segment(1, 3)); }, score()),
                   reference(score()(gaussian(three)))));
  const Matrix<bool> allowed = booleans.block(1, 2, 5, 7);
  EXPECT_TRUE(same(after_overwriting(
                       booleans, [](auto& m) { return allow(m.block(1, 2, 5, 7)); }, mask()),
                   reference(mask()(allow(allowed)))));
  const Matrix<int> lens = integers.block(2, 0, 1, 5);
  EXPECT_TRUE(same(after_overwriting(
                       integers, [](auto& m) { return valid_lens(m.block(2, 0, 1, 5)); }, mask()),
                   reference(mask()(valid_lens(lens)))));
  const Vector<int> query_ids = integers.col(1).head(5), key_ids = integers.col(2).head(7);
  EXPECT_TRUE(same(
      after_overwriting(
          integers, [](auto& m) { return segments(m.col(1).head(5), m.col(2).head(7)); }, mask()),
      reference(mask()(segments(query_ids, key_ids)))));
}

TEST_F(Policies, KeepTheElementsOfATemporaryTransposeOrRef) {
  const Matrix<float> turned = numbers.block(1, 2, 7, 5).transpose();
  EXPECT_TRUE(
      same(after_overwriting(
               numbers, [](auto& m) { return bias(m.block(1, 2, 7, 5).transpose()); }, modifier()),
           reference(modifier()(bias(turned)))));
  using Ref = Eigen::Ref<const Matrix<float>, 0, Eigen::OuterStride<>>;
  const Matrix<float> square = numbers.block(1, 2, 5, 7);
  EXPECT_TRUE(same(after_overwriting(
                       numbers, [](auto& m) { return bias(Ref(m.block(1, 2, 5, 7))); }, modifier()),
                   reference(modifier()(bias(square)))));
}

// The matrix that the block is of is gone when the policy is used.
TEST_F(Policies, OfABlockOfATemporary) {
  const auto kept = bias(Matrix<float>(2 * numbers).block(1, 2, 5, 7));
  const Matrix<float> square = 2 * numbers.block(1, 2, 5, 7);
  EXPECT_TRUE(same(reference(modifier()(kept)), reference(modifier()(bias(square)))));
}

TEST_F(Policies, ReferToWhatHasANameAndToMaps) {
  Matrix<float> named = numbers.block(1, 2, 5, 7), other = numbers.block(2, 1, 5, 7);
  const Reference expected = reference(modifier()(bias(other)));
  auto block = named.block(0, 0, 5, 7);
  const auto by_name = bias(named);
  const auto by_block = bias(block);
  const auto by_view = bias(view(named));
  const auto by_map = bias(Eigen::Map<Matrix<float>>(named.data(), 5, 7));
  named = other;
  EXPECT_TRUE(same(reference(modifier()(by_name)), expected));
  EXPECT_TRUE(same(reference(modifier()(by_block)), expected));
  EXPECT_TRUE(same(reference(modifier()(by_view)), expected));
  EXPECT_TRUE(same(reference(modifier()(by_map)), expected));
}

template <class T>
using KeptOf = detail::Kept<T&&>;
using Block = Eigen::Block<Matrix<float>>;
static_assert(std::is_same_v<KeptOf<Matrix<float>>, Matrix<float>>);
static_assert(std::is_same_v<KeptOf<const Matrix<float>>, Matrix<float>>);
static_assert(std::is_same_v<KeptOf<Matrix<float>&>, const Matrix<float>&>);
static_assert(std::is_same_v<KeptOf<Block>, Matrix<float>>);
static_assert(std::is_same_v<KeptOf<Block&>, const Block&>);
static_assert(std::is_same_v<KeptOf<Eigen::Map<Eigen::ArrayXf>>, Eigen::Map<Eigen::ArrayXf>>);
static_assert(std::is_same_v<KeptOf<View<float, 2>&>, View<float, 2>>);
static_assert(std::is_same_v<KeptOf<const View<float, 2>>, View<float, 2>>);
static_assert(std::is_same_v<KeptOf<std::vector<int>>, std::vector<int>>);
static_assert(std::is_same_v<KeptOf<Tensor<float, 3>>, Tensor<float, 3>>);

}  // namespace
}  // namespace heed::test
