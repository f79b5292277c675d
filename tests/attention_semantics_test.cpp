#include "score_support.hpp"

namespace heed::test {
namespace {

const Sizes middling{
    .batch = 2, .heads = 2, .key_heads = 1, .queries = 50, .keys = 230, .dim = 9, .width = 7};

// ---------------------------------------------------------------- rows without a key

TEST(EmptyRows, GiveZerosOnEveryPath) {
  const Inputs in(middling);
  const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key), v = make<float, 4>(in.value);
  // Every third query of the second batch entry sees nothing.
  const auto allowed = [](Index b, Index, Index i, Index j) {
    return b == 0 || (i % 3 != 0 && j < 100);
  };
  const Expected<float> expected(in.query, in.key, in.value, scaled_dot(), allowed);
  const auto pass = attention_forward(q, k, v, scaled_dot_product(), mask_if(allowed));
  const auto [output, weights] =
      attention_with_weights(q, k, v, scaled_dot_product(), mask_if(allowed));
  EXPECT_TRUE(expected.accepts(pass.output));
  EXPECT_TRUE(expected.accepts_log_sum_exp(pass.log_sum_exp));
  EXPECT_TRUE(expected.accepts(output));
  EXPECT_TRUE(expected.accepts_weights(weights));
  for (Index i = 0; i < 50; i += 3) {
    EXPECT_EQ(pass.log_sum_exp(1, 1, i), -infinity);
    for (Index c = 0; c < 7; ++c) {
      EXPECT_EQ(pass.output(1, 1, i, c), 0);
      EXPECT_EQ(output(1, 1, i, c), 0);
    }
    for (Index j = 0; j < 230; ++j) EXPECT_EQ(weights(1, 1, i, j), 0);
  }
}

TEST(EmptyRows, LengthsOfZero) {
  const Inputs in(middling);
  const auto q = make<double, 4>(in.query), k = make<double, 4>(in.key),
             v = make<double, 4>(in.value);
  const auto pass = attention_forward(q, k, v, gaussian(), valid_lens({0, 0}));
  EXPECT_TRUE(same(reference(pass.output), constant({2, 2, 50, 7}, 0)));
  EXPECT_TRUE(same(reference_rows(pass.log_sum_exp), constant({2, 2, 50, 1}, -infinity)));
  const auto [output, weights] = attention_with_weights(q, k, v, gaussian(), valid_lens({0, 0}));
  EXPECT_TRUE(same(reference(output), constant({2, 2, 50, 7}, 0)));
  EXPECT_TRUE(same(reference(weights), constant({2, 2, 50, 230}, 0)));
}

// A row of scores that are all -infinity has nothing to attend to either.
TEST(EmptyRows, EveryScoreMinusInfinity) {
  const Inputs in(middling);
  const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key), v = make<float, 4>(in.value);
  Matrix<float> hidden(50, 230);
  hidden.setZero();
  hidden.row(7).setConstant(-std::numeric_limits<float>::infinity());
  hidden.row(8).head(229).setConstant(-std::numeric_limits<float>::infinity());
  const auto pass = attention_forward(q, k, v, scaled_dot_product() | bias(hidden));
  const auto [output, weights] =
      attention_with_weights(q, k, v, scaled_dot_product() | bias(hidden));
  const Expected<float> expected(
      in.query, in.key, in.value, scaled_dot(),
      [](Index, Index, Index i, Index j) { return i != 7 && (i != 8 || j == 229); });
  EXPECT_TRUE(expected.accepts(pass.output));
  EXPECT_TRUE(expected.accepts_log_sum_exp(pass.log_sum_exp));
  EXPECT_TRUE(expected.accepts(output));
  EXPECT_TRUE(expected.accepts_weights(weights));
  EXPECT_EQ(pass.output(1, 1, 7, 3), 0);
  EXPECT_EQ(pass.log_sum_exp(1, 1, 7), -infinity);
}

// ---------------------------------------------------------------- what a mask hides

/// Poison in keys and values changes no bit of the rows that must not see it.
template <class Scalar, class Score, class Mask, class Allowed>
void expect_hidden(const Score& score, const Mask& mask, const Allowed& allowed, double poison) {
  SCOPED_TRACE(::testing::Message() << "poison " << poison);
  const Inputs in = Inputs(middling).rounded_to<Scalar>();
  const auto q = make<Scalar, 4>(in.query);
  const std::vector<std::vector<Index>> sets = {
      {0}, {20}, {100, 101, 191, 192}, {150, 229}, {40, 90, 140, 180, 200, 220}};
  for (const auto& places : sets) {
    Inputs clean = in, dirty = in;
    for (const Index j : places) {
      for (Index b = 0; b < 2; ++b) {
        for (Index d = 0; d < 9; ++d) {
          clean.key(b, 0, j, d) = 0;
          dirty.key(b, 0, j, d) = poison;
        }
        for (Index c = 0; c < 7; ++c) {
          clean.value(b, 0, j, c) = 0;
          dirty.value(b, 0, j, c) = poison;
        }
      }
    }
    const auto run = [&](const Inputs& x) {
      return attention_forward(q, make<Scalar, 4>(x.key), make<Scalar, 4>(x.value), score, mask);
    };
    const auto run_weights = [&](const Inputs& x) {
      return attention_with_weights(q, make<Scalar, 4>(x.key), make<Scalar, 4>(x.value), score,
                                    mask);
    };
    const auto a = run(clean), b = run(dirty);
    const auto wa = run_weights(clean), wb = run_weights(dirty);
    const Reference outputs[] = {reference(a.output), reference(b.output), reference(wa.output),
                                 reference(wb.output)};
    const Reference lse[] = {reference_rows(a.log_sum_exp), reference_rows(b.log_sum_exp)};
    const Reference weights[] = {reference(wa.weights), reference(wb.weights)};
    Index rows_that_count = 0, wrong = 0;
    for_each_index({2, 2, 50, 1}, [&](Index n, Index h, Index i, Index) {
      for (const Index j : places) {
        if (allowed(n, h, i, j)) return;
      }
      ++rows_that_count;
      for (Index c = 0; c < 7; ++c) {
        wrong += !(outputs[0](n, h, i, c) == outputs[1](n, h, i, c));
        wrong += !(outputs[2](n, h, i, c) == outputs[3](n, h, i, c));
      }
      wrong += !(lse[0](n, h, i, 0) == lse[1](n, h, i, 0));
      for (Index j = 0; j < 230; ++j) wrong += !(weights[0](n, h, i, j) == weights[1](n, h, i, j));
    });
    EXPECT_EQ(wrong, 0) << "numbers differ in " << rows_that_count << " rows; first place "
                        << places[0];
  }
}

template <class Scalar, class Score, class Mask, class Allowed>
void expect_hidden(const Score& score, const Mask& mask, const Allowed& allowed) {
  for (const double poison : {nan, infinity, -infinity, 1e38}) {
    expect_hidden<Scalar>(score, mask, allowed, poison);
  }
}

TEST(Hidden, ByLengths) {
  expect_hidden<float>(scaled_dot_product(), valid_lens({100, 40}),
                       [](Index b, Index, Index, Index j) { return j < (b == 0 ? 100 : 40); });
}

TEST(Hidden, ByTheFuture) {
  expect_hidden<float>(scaled_dot_product(), causal(Align::top_left),
                       [](Index, Index, Index i, Index j) { return j <= i; });
  expect_hidden<double>(scaled_dot_product(), causal(),
                        [](Index, Index, Index i, Index j) { return j <= i + 180; });
}

TEST(Hidden, ByAWindow) {
  expect_hidden<float>(scaled_dot_product(), sliding_window(5, 3),
                       [](Index, Index, Index i, Index j) { return j >= i + 175 && j <= i + 183; });
}

TEST(Hidden, BySegments) {
  std::vector<int> query_ids, key_ids;
  for (int i = 0; i < 50; ++i) query_ids.push_back(i / 9);
  for (int j = 0; j < 230; ++j) key_ids.push_back(j / 21);
  expect_hidden<float>(scaled_dot_product(), segments(query_ids, key_ids),
                       [](Index, Index, Index i, Index j) { return i / 9 == j / 21; });
}

TEST(Hidden, ByAPredicateOrATensor) {
  const auto allowed = [](Index b, Index h, Index i, Index j) { return (b + h + i + j) % 3 == 0; };
  Tensor<bool, 4> t(2, 2, 50, 230);
  for_each_index({2, 2, 50, 230},
                 [&](Index b, Index h, Index i, Index j) { t(b, h, i, j) = allowed(b, h, i, j); });
  expect_hidden<float>(scaled_dot_product(), mask_if(allowed), allowed);
  expect_hidden<float>(scaled_dot_product(), allow(t), allowed);
  expect_hidden<float>(
      scaled_dot_product(), !prefix(120) && allow(t),
      [=](Index b, Index h, Index i, Index j) { return j >= 120 && allowed(b, h, i, j); });
}

TEST(Hidden, FromEveryScore) {
  const auto allowed = [](Index, Index, Index i, Index j) { return j <= i + 100; };
  const auto past = mask_if(allowed);
  const auto w = vector_of<float>(9, 4);
  const auto m = make<float, 2>(random({1, 1, 9, 9}, 6));
  expect_hidden<float>(additive(w), past, allowed);
  expect_hidden<float>(gaussian(.5), past, allowed);
  expect_hidden<float>(bilinear(m), past, allowed);
  expect_hidden<float>(pairwise([](auto a, auto b) { return a * b * b; }) | softcap(5), past,
                       allowed);
}

TEST(Hidden, FromHalf) {
  for (const double poison : {nan, infinity, -infinity}) {
    expect_hidden<Eigen::half>(
        scaled_dot_product(), causal(Align::top_left),
        [](Index, Index, Index i, Index j) { return j <= i; }, poison);
  }
}

// A bias of NaN or infinity at hidden pairs, of visible keys and in visible rows.
TEST(Hidden, BiasesOfHiddenPairs) {
  const Inputs in(middling);
  const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key), v = make<float, 4>(in.value);
  const auto allowed = [](Index, Index, Index i, Index j) {
    return (2 * i + j) % 5 != 0 && j <= i + 180;
  };
  const auto mask =
      mask_if([](Index, Index, Index i, Index j) { return (2 * i + j) % 5 != 0; }) && causal();
  Matrix<float> clean(50, 230);
  clean.setRandom();
  Matrix<float> zeros = clean;
  for (Index i = 0; i < 50; ++i) {
    for (Index j = 0; j < 230; ++j) {
      if (!allowed(0, 0, i, j)) zeros(i, j) = 0;
    }
  }
  const auto expected = attention_forward(q, k, v, scaled_dot_product() | bias(zeros), mask);
  const auto expected_weights =
      attention_with_weights(q, k, v, scaled_dot_product() | bias(zeros), mask);
  for (const double poison : {nan, infinity, -infinity}) {
    Matrix<float> dirty = clean;
    for (Index i = 0; i < 50; ++i) {
      for (Index j = 0; j < 230; ++j) {
        if (!allowed(0, 0, i, j)) dirty(i, j) = static_cast<float>(poison);
      }
    }
    const auto pass = attention_forward(q, k, v, scaled_dot_product() | bias(dirty), mask);
    EXPECT_TRUE(same(reference(pass.output), reference(expected.output))) << poison;
    EXPECT_TRUE(same(reference_rows(pass.log_sum_exp), reference_rows(expected.log_sum_exp)))
        << poison;
    const auto [output, weights] =
        attention_with_weights(q, k, v, scaled_dot_product() | bias(dirty), mask);
    EXPECT_TRUE(same(reference(output), reference(expected_weights.output))) << poison;
    EXPECT_TRUE(same(reference(weights), reference(expected_weights.weights))) << poison;
  }
}

// A modifier of the user's own that has no value for hidden pairs.
TEST(Hidden, ModifiersOfHiddenPairs) {
  const Inputs in(middling);
  const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key), v = make<float, 4>(in.value);
  const auto mask = causal(Align::top_left);
  const auto pass = attention_forward(
      q, k, v,
      scaled_dot_product() | score_mod([](auto s, Index, Index, Index i, Index j) {
        return s / (j <= i ? 1. : 0.) + (j <= i ? 0. : std::numeric_limits<double>::quiet_NaN());
      }),
      mask);
  const Expected<float> expected(in.query, in.key, in.value, scaled_dot(),
                                 [](Index, Index, Index i, Index j) { return j <= i; });
  EXPECT_TRUE(expected.accepts(pass.output));
  EXPECT_TRUE(expected.accepts_log_sum_exp(pass.log_sum_exp));
}

TEST(Visible, NaNIsNotSweptUnderTheRug) {
  const Inputs in(middling);
  Inputs dirty = in;
  dirty.value(0, 0, 3, 2) = nan;
  const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key);
  const auto output = attention(q, k, make<float, 4>(dirty.value));
  EXPECT_TRUE(std::isnan(output(0, 0, 0, 2)));
  EXPECT_FALSE(std::isnan(output(0, 0, 0, 1)));
  EXPECT_FALSE(std::isnan(output(1, 0, 0, 2)));
  dirty.key(0, 0, 3, 2) = nan;
  EXPECT_TRUE(
      std::isnan(attention(q, make<float, 4>(dirty.key), make<float, 4>(in.value))(0, 0, 49, 0)));
}

// ---------------------------------------------------------------- numbers at the edge

constexpr double eps = std::numeric_limits<float>::epsilon();

/// Scores of any size; the witness works in double, where 1e30 is harmless. `bound` is that of the
/// weights, which are off by as much as their scores.
void expect_extreme(double query_scale, double key_scale, double shift, double bound) {
  SCOPED_TRACE(::testing::Message() << query_scale << ", " << key_scale << ", shift " << shift);
  const Sizes sizes{.queries = 50, .keys = 230, .dim = 1, .width = 3};
  Inputs in(sizes);
  // Whole numbers times a power of two, so that products are exact in float as well as in double.
  for (Index n = 0; n < in.query.size(); ++n)
    in.query.data()[n] = std::round(in.query.data()[n] * 8) * query_scale;
  for (Index n = 0; n < in.key.size(); ++n)
    in.key.data()[n] = std::round(in.key.data()[n] * 64) * key_scale + shift;
  const auto exact =
      attend<double>(in.query, in.key, in.value, dot(), everything(), [](auto...) { return 1.0; });
  const auto q = make<float, 2>(in.query), k = make<float, 2>(in.key), v = make<float, 2>(in.value);
  const auto pass = attention_forward(q, k, v, dot_product());
  const auto [output, weights] = attention_with_weights(q, k, v, dot_product());
  EXPECT_TRUE(near(reference(pass.output), exact.output, bound));
  EXPECT_TRUE(near(reference(output), exact.output, bound));
  EXPECT_TRUE(near(reference(weights), exact.weights, bound));
  for (Index i = 0; i < 50; ++i) {
    const double lse = exact.log_sum_exp(0, 0, i, 0);
    EXPECT_TRUE(std::abs(number(pass.log_sum_exp(i)) - lse) <= 8 * eps * (1 + std::abs(lse)))
        << lse;
  }
}

TEST(Extremes, ScoresOfAnySize) {
  for (const double scale : {0x1p0, 0x1p8, 0x1p12, 0x1p16, 0x1p20, 0x1p24, 0x1p40, 0x1p90}) {
    expect_extreme(1, scale, 0, 8 * eps);
    expect_extreme(-1, scale, 0, 8 * eps);
  }
}

// The scores differ by a few hundred and all lie up to 8 (shift + 64) from zero, on either side: an
// error of that times epsilon is what float leaves of them.
TEST(Extremes, RowsFarFromZero) {
  for (const double shift : {0x1p10, 0x1p14, 0x1p17, -0x1p10, -0x1p14, -0x1p17}) {
    expect_extreme(1, 1, shift, 8 * (std::abs(shift) + 64) * eps);
  }
}

TEST(Extremes, RowsFarBelowZero) {
  for (const float level : {-1e5F, -1e6F, -1e7F, -1e10F, -1e20F, -1e30F}) {
    for (const Index keys : {1, 3, 200}) {
      Matrix<float> query(30, 1), key(keys, 1), value(keys, 1);
      query.setOnes();
      key.setConstant(level);
      for (Index j = 0; j < keys; ++j) value(j) = static_cast<float>(j);
      const auto pass = attention_forward(query, key, value, dot_product());
      const float mean = static_cast<float>(keys - 1) / 2;
      for (Index i = 0; i < 30; ++i) {
        EXPECT_NEAR(pass.output(i, 0), mean, 1e-6F * mean) << level;
        EXPECT_NEAR(pass.log_sum_exp(i) / level, 1, 1e-4) << level;
      }
    }
  }
}

// A small score after a huge one, and the other way round, in tiles of their own.
TEST(Extremes, ScoresThatJumpFromTileToTile) {
  for (const float high : {30.F, 1e4F, 3e6F, 1e30F}) {
    for (const Index place : {0, 10, 191, 192, 300, 449}) {
      Matrix<float> query(25, 1), key(450, 1), value(450, 1);
      query.setOnes();
      key.setConstant(-high);
      value.setConstant(5);
      key(place) = high;
      value(place) = 3;
      const auto output = attention(query, key, value, dot_product());
      for (Index i = 0; i < 25; ++i) EXPECT_NEAR(output(i, 0), 3, 1e-6) << high << " at " << place;
    }
  }
}

TEST(Extremes, InfiniteScoresBelow) {
  // -infinity among the visible scores is a weight of zero.
  Matrix<float> query(25, 1), key(450, 1), value(450, 1);
  query.setOnes();
  key.setConstant(-std::numeric_limits<float>::infinity());
  value.setConstant(5);
  key(300) = -1e30F;
  value(300) = 3;
  const auto pass = attention_forward(query, key, value, dot_product());
  for (Index i = 0; i < 25; ++i) EXPECT_EQ(pass.output(i, 0), 3);
}

TEST(Extremes, ScoresOfOneRowSayNothingToAnother) {
  // Every query of a panel on a level of its own, from 1e-30 to 1e30.
  const Index queries = 61, keys = 200;
  Matrix<float> query(queries, 1), key(keys, 1), value(keys, 1);
  for (Index i = 0; i < queries; ++i)
    query(i) = std::pow(10.F, static_cast<float>(i - 30)) * (i % 2 == 0 ? 1 : -1);
  for (Index j = 0; j < keys; ++j) {
    key(j) = 1 + static_cast<float>((j * 37) % 64) / 64;
    value(j) = static_cast<float>(j % 7);
  }
  const auto together = attention(query, key, value, dot_product());
  for (Index i = 0; i < queries; ++i) {
    const Matrix<float> one = query.row(i);
    const auto exact = attend<double>(
        reference(one), reference(key), reference(value),
        [](const auto& p) {
          return static_cast<double>(static_cast<float>(p.query[0] * p.key[0]));
        },
        everything(), [](auto...) { return 1.0; });
    // The rounding of the product in float is the witness's as well; |score| eps remains of the
    // exponent.
    const double size = std::min(200., 2 * std::abs(number(query(i))));
    EXPECT_NEAR(together(i, 0), exact.output(0, 0, 0, 0), 6e-7 * (6 + 6 * size)) << query(i);
  }
}

// ---------------------------------------------------------------- nothing to do

template <int Rank>
void expect_nothing(const Sizes& sizes) {
  SCOPED_TRACE(text(sizes));
  const Inputs in(sizes);
  const auto q = make<float, Rank>(in.query), k = make<float, Rank>(in.key),
             v = make<float, Rank>(in.value);
  const Shape output_shape{sizes.batch, sizes.heads, sizes.queries, sizes.width};
  const auto pass = attention_forward(q, k, v);
  EXPECT_TRUE(same(reference(pass.output), constant(output_shape, 0)));
  EXPECT_TRUE(same(reference_rows(pass.log_sum_exp),
                   constant({sizes.batch, sizes.heads, sizes.queries, 1}, -infinity)));
  const auto [output, weights] = attention_with_weights(q, k, v, scaled_dot_product(), causal());
  EXPECT_TRUE(same(reference(output), constant(output_shape, 0)));
  EXPECT_EQ(Shape(reference(weights).dimensions()),
            (Shape{sizes.batch, sizes.heads, sizes.queries, sizes.keys}));
  EXPECT_TRUE(
      same(reference(attention(q, k, v, additive(Vector<float>(Vector<float>::Ones(sizes.dim))),
                               !causal())),
           constant(output_shape, 0)));
}

TEST(Nothing, NoKeysNoQueriesNoBatch) {
  expect_nothing<2>({.queries = 5, .keys = 0, .dim = 3, .width = 2});
  expect_nothing<2>({.queries = 0, .keys = 4, .dim = 3, .width = 2});
  expect_nothing<2>({.queries = 0, .keys = 0, .dim = 3, .width = 2});
  expect_nothing<3>({.batch = 0, .queries = 5, .keys = 4, .dim = 3, .width = 2});
  expect_nothing<3>({.batch = 2, .queries = 30, .keys = 0, .dim = 3, .width = 2});
  expect_nothing<4>(
      {.batch = 2, .heads = 2, .key_heads = 2, .queries = 0, .keys = 4, .dim = 3, .width = 2});
  expect_nothing<4>(
      {.batch = 0, .heads = 2, .key_heads = 2, .queries = 5, .keys = 4, .dim = 3, .width = 2});
  expect_nothing<4>(
      {.batch = 1, .heads = 0, .key_heads = 0, .queries = 5, .keys = 4, .dim = 3, .width = 2});
}

TEST(Nothing, NoFeaturesIsScoreZero) {
  const Inputs in({.queries = 5, .keys = 4, .dim = 0, .width = 2});
  const auto output =
      attention(make<double, 2>(in.query), make<double, 2>(in.key), make<double, 2>(in.value));
  const auto values = make<double, 2>(in.value);
  for (Index i = 0; i < 5; ++i) {
    for (Index c = 0; c < 2; ++c) EXPECT_NEAR(output(i, c), values.col(c).mean(), 1e-15);
  }
}

TEST(Nothing, ValuesOfNoWidth) {
  const Inputs in({.queries = 5, .keys = 4, .dim = 3, .width = 0});
  const auto pass = attention_forward(make<double, 2>(in.query), make<double, 2>(in.key),
                                      make<double, 2>(in.value));
  EXPECT_EQ(pass.output.rows(), 5);
  EXPECT_EQ(pass.output.cols(), 0);
  const auto exact = attend<double>(in.query, in.key, in.value, scaled_dot(), everything(),
                                    [](auto...) { return 1.0; });
  EXPECT_TRUE(near(reference_rows(pass.log_sum_exp), exact.log_sum_exp, 1e-14));
}

}  // namespace
}  // namespace heed::test
