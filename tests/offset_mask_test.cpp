#include <cstdint>
#include <limits>

#include "mask_support.hpp"

namespace heed::test {
namespace {

constexpr Index least = std::numeric_limits<Index>::min(), most = std::numeric_limits<Index>::max();

/// Weights of equal scores, of double.
template <class Mask>
Reference equal_weights(const Shape& shape, const Mask& mask) {
  return reference(masked_softmax(make<double, 4>(constant(shape, 0)), mask));
}

// Two queries, four keys. Offset 1: positions 1, 2 see keys 0..1 and 0..2. Offset -1: positions
// -1, 0 see nothing and key 0. Offset 7: both see all.
TEST(OffsetCausal, ByHand) {
  Reference expected(Shape{3, 1, 2, 4});
  const double third = 1. / 3;
  expected.setValues({{{{.5, .5, 0, 0}, {third, third, third, 0}}},
                      {{{0, 0, 0, 0}, {1, 0, 0, 0}}},
                      {{{.25, .25, .25, .25}, {.25, .25, .25, .25}}}});
  EXPECT_TRUE(near(equal_weights({3, 1, 2, 4}, causal({1, -1, 7})), expected, 1e-15));
}

// Positions 1, 2; left 1, right 1: keys 0..2 and 1..3. Positions 4, 5: key 3, and nothing.
// Positions -1, 0: key 0, and keys 0..1.
TEST(OffsetWindow, ByHand) {
  Reference expected(Shape{3, 1, 2, 4});
  const double third = 1. / 3;
  expected.setValues({{{{third, third, third, 0}, {0, third, third, third}}},
                      {{{0, 0, 0, 1}, {0, 0, 0, 0}}},
                      {{{1, 0, 0, 0}, {.5, .5, 0, 0}}}});
  EXPECT_TRUE(near(equal_weights({3, 1, 2, 4}, sliding_window(1, 1, {1, 4, -1})), expected, 1e-15));
}

TEST(OffsetCausal, OverLengths) {
  for (const auto& [queries, keys] : lengths) {
    const std::vector<Index> offsets = {0, keys - queries, keys / 2, -queries / 2, keys + 5};
    expect_mask({5, 2, queries, keys}, causal(offsets), [&](Index b, Index, Index i, Index j) {
      return j <= i + offsets[static_cast<std::size_t>(b)];
    });
  }
}

TEST(OffsetWindow, OverLengths) {
  const std::array<std::array<Index, 2>, 7> windows = {
      {{0, 0}, {0, 3}, {30, 5}, {-1, 0}, {2, -1}, {-1, -1}, {500, 500}}};
  for (const auto& [queries, keys] : lengths) {
    const std::vector<int> offsets = {0, static_cast<int>(keys / 2), -3, static_cast<int>(keys)};
    for (const auto& [left, right] : windows) {
      SCOPED_TRACE(::testing::Message() << "window " << left << ", " << right);
      expect_mask({4, 1, queries, keys}, sliding_window(left, right, offsets),
                  [&, l = left, r = right](Index b, Index, Index i, Index j) {
                    const Index p = i + offsets[static_cast<std::size_t>(b)];
                    return (l < 0 || p - l <= j) && (r < 0 || j <= p + r);
                  });
    }
  }
}

// Offset 0 is top_left, keys - queries bottom_right; both compose.
TEST(OffsetCausal, IsTheAlignsAndComposes) {
  const Shape shape{2, 1, 3, 5};
  EXPECT_TRUE(
      same(equal_weights(shape, causal({0, 0})), equal_weights(shape, causal(Align::top_left))));
  EXPECT_TRUE(same(equal_weights(shape, causal({2, 2})), equal_weights(shape, causal())));
  EXPECT_TRUE(same(equal_weights(shape, causal({2, 2}) && !causal({0, 0})),
                   equal_weights(shape, sliding_window(1, 0, {2, 2}))));
}

TEST(OffsetCausal, TakesEveryContainerOfIntegers) {
  const Shape shape{2, 2, 3, 6};
  const auto expected = equal_weights(shape, causal({3, 1}));
  const auto check = [&](const auto& offsets) {
    EXPECT_TRUE(same(equal_weights(shape, causal(offsets)), expected));
    EXPECT_TRUE(same(equal_weights(shape, sliding_window(-1, 0, offsets)), expected));
  };
  check(std::vector<int>{3, 1});
  check(std::vector<std::uint8_t>{3, 1});
  check(std::vector<std::uint64_t>{3, 1});
  check(Eigen::Vector2i(3, 1));
  check(Eigen::RowVector2i(3, 1));
  Eigen::VectorXi vector(4);
  vector << 3, 9, 1, 9;
  const Eigen::Map<Eigen::VectorXi, 0, Eigen::InnerStride<2>> strided(vector.data(), 2);
  check(strided);
  check(View<const int, 1>{vector.data(), {2}, {2}});
  Tensor<std::int64_t, 1> tensor(2);
  tensor.setValues({3, 1});
  check(tensor);
  // A temporary is kept.
  const auto kept = causal(std::vector<Index>{3, 1});
  EXPECT_TRUE(same(equal_weights(shape, kept), expected));
}

// Sums that no Index holds: the positions most and most + 1, and least, with windows as wide.
TEST(OffsetWindow, NearTheEndsOfIndex) {
  const Shape shape{2, 1, 2, 3};
  const auto none = constant(shape, 0), all = constant(shape, 1. / 3);
  EXPECT_TRUE(near(equal_weights(shape, causal({most, most - 1})), all, 1e-15));
  EXPECT_TRUE(same(equal_weights(shape, causal({least, least + 1})), none));
  EXPECT_TRUE(same(equal_weights(shape, sliding_window(5, 5, {most, least})), none));
  EXPECT_TRUE(same(equal_weights(shape, sliding_window(most - 3, most - 2, {most, least})), none));
  EXPECT_TRUE(near(equal_weights(shape, sliding_window(most, most, {most - 1, -most})),
                   generate(shape,
                            [](Index b, Index, Index i, Index j) {
                              // Positions most - 1 and most reach back to 0. Positions -most and
                              // 1 - most reach up to keys 0 and 1.
                              if (b == 0) return 1. / 3;
                              return i == 0 ? double(j == 0) : .5 * double(j <= 1);
                            }),
                   1e-15));
  // Positions most and most + 1 reach back to keys 0 and 1.
  EXPECT_TRUE(
      near(equal_weights({1, 1, 2, 3}, sliding_window(most, 0, {most})),
           generate({1, 1, 2, 3}, [](Index, Index, Index i,
                                     Index j) { return i == 0 ? 1. / 3 : .5 * double(j >= 1); }),
           1e-15));
}

// Tokens that follow a cache: the same as the rows of the whole sequence.
TEST(OffsetCausal, DecodesSequencesOfUnequalLengths) {
  const Reference q = random({2, 2, 9, 8}, 1), k = random({2, 2, 9, 8}, 2),
                  v = random({2, 2, 9, 4}, 3);
  const auto whole = reference(attention(make<float, 4>(q), make<float, 4>(k), make<float, 4>(v),
                                         scaled_dot_product(), causal()));
  const std::array<Index, 2> starts = {6, 2};
  for (const Index count : {1, 3}) {
    const Shape shape{2, 2, count, 8};
    const auto next = generate(shape, [&](Index b, Index h, Index i, Index c) {
      return q(b, h, starts[static_cast<std::size_t>(b)] + i, c);
    });
    const auto got = attention(make<float, 4>(next), make<float, 4>(k), make<float, 4>(v),
                               scaled_dot_product(), causal({starts[0], starts[1]}));
    const auto expected = generate({2, 2, count, 4}, [&](Index b, Index h, Index i, Index c) {
      return whole(b, h, starts[static_cast<std::size_t>(b)] + i, c);
    });
    EXPECT_TRUE(near(reference(got), expected, 1e-6));
  }
}

TEST(OffsetCausal, RefusesWhatDoesNotFit) {
  const auto scores = make<double, 4>(constant({2, 1, 3, 4}, 0));
  EXPECT_TRUE(refuses([&] { masked_softmax(scores, causal({1, 2, 3})); },
                      {"causal", "3 offsets", "batch of 2"}));
  EXPECT_TRUE(refuses([&] { masked_softmax(scores, causal(std::vector<int>{})); },
                      {"causal", "0 offsets", "batch of 2"}));
  EXPECT_TRUE(refuses([&] { masked_softmax(scores, sliding_window(1, 1, {4})); },
                      {"sliding_window", "1 offsets", "batch of 2"}));
  EXPECT_TRUE(refuses([&] { sliding_window(-2, 1, {4, 4}); }, {"sliding_window", "-2"}));
  const std::vector<std::uint64_t> far = {0, std::uint64_t(1) << 63};
  EXPECT_TRUE(refuses([&] { masked_softmax(scores, causal(far)); }, {"causal", "batch 1"}));
}

}  // namespace
}  // namespace heed::test
