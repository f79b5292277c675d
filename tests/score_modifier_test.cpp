#include "score_support.hpp"

namespace heed::test {
namespace {

// Everything in float; double once for each kind of modifier, in chains.
template <class Scalar>
class ModifierChain : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(ModifierChain, Scalars, );

TEST(Modifier, Softcap) {
  for (const Sizes& sizes : sweep()) {
    for (const double cap : {1., 30.}) {
      expect_score<float>(
          Inputs(sizes, 2), dot_product() | softcap(cap),
          [=](const auto& p) {
            const auto c = static_cast<RealOf<decltype(p)>>(cap);
            return c * std::tanh(dot()(p) / c);
          },
          cap);
    }
  }
}

TEST(Modifier, AlibiHasOneSlopeForEachQueryHead) {
  for (const Sizes& sizes : sweep()) {
    const auto slopes = vector_of<float>(sizes.heads, 7, .1);
    expect_score<float>(Inputs(sizes), scaled_dot_product() | alibi(slopes), [&](const auto& p) {
      using Real = RealOf<decltype(p)>;
      return scaled_dot()(p) + static_cast<Real>(slopes(p.h)) * static_cast<Real>(p.j - p.i);
    });
  }
}

TEST(Modifier, BiasBroadcastsEveryAxis) {
  const Sizes sizes{
      .batch = 2, .heads = 4, .key_heads = 2, .queries = 26, .keys = 203, .dim = 5, .width = 3};
  const Shape shape{2, 4, 26, 203};
  for (int axes = 0; axes < 16; ++axes) {
    Shape own = shape;
    for (std::size_t a = 0; a < 4; ++a) own[a] = (axes >> a & 1) != 0 ? 1 : shape[a];
    const Reference numbers = random(own, 8, 2);
    const auto t = make<float, 4>(numbers);
    expect_score<float>(Inputs(sizes), scaled_dot_product() | bias(t), [&](const auto& p) {
      return scaled_dot()(p) + static_cast<RealOf<decltype(p)>>(
                                   numbers(p.b % own[0], p.h % own[1], p.i % own[2], p.j % own[3]));
    });
  }
}

TEST(Modifier, BiasOfRankTwoAndThree) {
  const Sizes sizes{
      .batch = 2, .heads = 2, .key_heads = 1, .queries = 9, .keys = 50, .dim = 5, .width = 3};
  const Reference two = random({1, 1, 9, 50}, 8), three = random({2, 1, 9, 50}, 9);
  expect_score<float>(
      Inputs(sizes), scaled_dot_product() | bias(make<float, 2, Eigen::ColMajor>(two)),
      [&](const auto& p) {
        return scaled_dot()(p) + static_cast<RealOf<decltype(p)>>(two(0, 0, p.i, p.j));
      });
  expect_score<float>(
      Inputs(sizes), scaled_dot_product() | bias(make<float, 3, Eigen::ColMajor>(three)),
      [&](const auto& p) {
        return scaled_dot()(p) + static_cast<RealOf<decltype(p)>>(three(p.b, 0, p.i, p.j));
      });
}

TEST(Modifier, ScoreModWithIndices) {
  for (const Sizes& sizes : sweep()) {
    const auto score =
        scaled_dot_product() | score_mod([](auto s, Index b, Index h, Index i, Index j) {
          const double sign = (i + j) % 2 == 0 ? 1 : -1;
          return s * sign + 0.25 * static_cast<double>(b) - 0.5 * static_cast<double>(h * j % 3);
        });
    expect_score<float>(Inputs(sizes), score, [](const auto& p) {
      using Real = RealOf<decltype(p)>;
      return scaled_dot()(p) * static_cast<Real>((p.i + p.j) % 2 == 0 ? 1 : -1) +
             static_cast<Real>(p.b) / 4 - static_cast<Real>(p.h * p.j % 3) / 2;
    });
  }
}

TEST(Modifier, ScoreModWithGenericIndices) {
  for (const Sizes& sizes : sweep()) {
    const auto score = scaled_dot_product() | score_mod([](auto s, auto b, auto h, auto i, auto j) {
                         using std::tanh;
                         using Number = decltype(s);  // float, double or a vector of them
                         const auto apart = static_cast<Number>(i - j);
                         return tanh(s) * 2 + Number(b) / 2 + Number(h) - apart * apart / 512;
                       });
    expect_score<float>(Inputs(sizes), score, [](const auto& p) {
      using Real = RealOf<decltype(p)>;
      const auto apart = static_cast<Real>(p.i - p.j);
      return std::tanh(scaled_dot()(p)) * 2 + static_cast<Real>(p.b) / 2 + static_cast<Real>(p.h) -
             apart * apart / 512;
    });
  }
}

// softcap after bias caps the bias too; the other way round it does not.
TYPED_TEST(ModifierChain, ActInTheOrderWritten) {
  const Sizes sizes{
      .batch = 2, .heads = 2, .key_heads = 2, .queries = 26, .keys = 70, .dim = 5, .width = 3};
  const Reference numbers = random({1, 1, 26, 70}, 8, 5);
  const auto t = make<TypeParam, 2>(numbers);
  const auto biased = [&](const auto& p) {
    return static_cast<RealOf<decltype(p)>>(numbers(0, 0, p.i, p.j));
  };
  expect_score<TypeParam>(
      Inputs(sizes), dot_product() | bias(t) | softcap(2),
      [&](const auto& p) { return 2 * std::tanh((dot()(p) + biased(p)) / 2); }, 2);
  expect_score<TypeParam>(
      Inputs(sizes), dot_product() | softcap(2) | bias(t),
      [&](const auto& p) { return 2 * std::tanh(dot()(p) / 2) + biased(p); }, 7);
}

// Four modifiers on a score that is no dot product, under a mask.
TYPED_TEST(ModifierChain, OfFourOnAnyScoreUnderAMask) {
  const auto slopes = vector_of<TypeParam>(2, 7, .1);
  const auto score =
      gaussian(.5) | alibi(slopes) | softcap(3) | score_mod([](auto s, auto, auto h, auto, auto) {
        return s * static_cast<decltype(s)>(1 + h);
      });
  const Sizes sizes{
      .batch = 1, .heads = 2, .key_heads = 1, .queries = 60, .keys = 220, .dim = 6, .width = 4};
  expect_score<TypeParam>(
      Inputs(sizes), score, causal() && sliding_window(100, -1),
      [&](const auto& p) {
        using Real = RealOf<decltype(p)>;
        const Real s = -squared_distance(p) / 8 +
                       static_cast<Real>(slopes(p.h)) * static_cast<Real>(p.j - p.i);
        return 3 * std::tanh(s / 3) * static_cast<Real>(1 + p.h);
      },
      [](Index, Index, Index i, Index j) { return j <= i + 160 && j >= i + 60; }, 6);
}

TEST(Modifiers, AlibiCountsHeadsNotPositionsOfTheGroup) {
  const Sizes sizes{
      .batch = 1, .heads = 6, .key_heads = 2, .queries = 5, .keys = 9, .dim = 3, .width = 2};
  const std::vector<double> slopes = {.5, .25, .125, .0625, .03125, .015625};
  expect_score<double>(Inputs(sizes), dot_product() | alibi(slopes), [&](const auto& p) {
    using Real = RealOf<decltype(p)>;
    return dot()(p) +
           static_cast<Real>(slopes[static_cast<std::size_t>(p.h)]) * static_cast<Real>(p.j - p.i);
  });
}

TEST(Modifiers, RefuseParametersThatDoNotFit) {
  const auto q = make<float, 4>(random({2, 3, 5, 4}, 1)),
             k = make<float, 4>(random({2, 3, 7, 4}, 2));
  const auto refused = [&](const auto& score, std::initializer_list<std::string> parts) {
    EXPECT_TRUE(refuses([&] { attention(q, k, k, score); }, parts));
    EXPECT_TRUE(refuses([&] { attention_with_weights(q, k, k, score); }, parts));
  };
  const auto slopes = vector_of<float>(11, 1);
  refused(dot_product() | alibi(slopes), {"heed::", "11", "3"});
  refused(dot_product() | bias(make<float, 2>(random({1, 1, 5, 11}, 1))), {"heed::", "11", "7"});
  refused(dot_product() | bias(make<float, 2>(random({1, 1, 11, 7}, 1))), {"heed::", "11", "5"});
  refused(dot_product() | bias(make<float, 3>(random({3, 1, 5, 7}, 1))), {"heed::", "3", "2"});
  const auto nine_heads = make<float, 4>(random({2, 9, 5, 7}, 1));
  refused(dot_product() | bias(nine_heads), {"heed::", "9", "3"});
  refused(dot_product() | softcap(5) | alibi(slopes), {"heed::", "11", "3"});
}

TEST(ScoreMod, AnIndexIsARealNumberOnEveryPath) {
  // (j - i) / 2 of whole numbers would be 1 less a half where j - i is odd.
  const Inputs in({.queries = 40, .keys = 37, .dim = 16, .width = 16});
  const auto q = make<float, 2>(in.query), k = make<float, 2>(in.key), v = make<float, 2>(in.value);
  const std::vector<float> table = {.5F, -1};
  const auto score = scaled_dot_product() | score_mod([&](auto s, auto, auto h, auto i, auto j) {
                       return s + (j - i) / 2 - table[static_cast<std::size_t>(Index(h))] +
                              modulo(j - i, 2) * 3 - j / 8;
                     });
  const auto formula = [&](const auto& p) {
    using Real = RealOf<decltype(p)>;
    const auto apart = static_cast<Real>(p.j - p.i);
    return scaled_dot()(p) + apart / 2 - Real(.5) + static_cast<Real>((p.j + p.i) % 2) * 3 -
           static_cast<Real>(p.j) / 8;
  };
  const Expected<float> expected(in.query, in.key, in.value, formula, everything());
  EXPECT_TRUE(expected.accepts(attention(q, k, v, score)));
  EXPECT_TRUE(expected.accepts(attention_with_weights(q, k, v, score).output));
  // One query has a loop of its own.
  const auto one = attention(Matrix<float>(q.row(0)), k, v, score);
  EXPECT_TRUE(near(reference(one), rows(expected.output, 0, 1), expected.output_bound));
  // Where the indices are declared whole numbers, they are, on every path.
  const auto whole = scaled_dot_product() | score_mod([](auto s, Index, Index, Index i, Index j) {
                       return s + static_cast<float>((j - i) / 2);
                     });
  EXPECT_TRUE(near(reference(attention(q, k, v, whole)),
                   reference(attention_with_weights(q, k, v, whole).output), 1e-5));
}

TEST(ScoreMod, Modulo) {
  EXPECT_EQ(modulo(7, 3), 1);
  EXPECT_EQ(modulo(-7, 3), 2);
  EXPECT_EQ(modulo(-7.F, 3), 2);
  EXPECT_EQ(modulo(6.F, 3), 0);
  EXPECT_EQ(modulo(16777215.F, 5), 0);
  using L = detail::Lanes<float>;
  float lanes[L::size];
  modulo(L::counting(-5), 3).store(lanes);
  for (Index n = 0; n < L::size; ++n) EXPECT_EQ(lanes[n], static_cast<float>((n - 5 + 300) % 3));
}

}  // namespace
}  // namespace heed::test
