#include <functional>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "score_support.hpp"

/// Few queries to many keys, as in decoding: the shapes that have a loop of their own.
namespace heed::test {
namespace {

/// Rows (query heads of a group times queries) from 1 to 96, keys around a register, a tile and a
/// chunk, widths below, at and beside whole registers.
std::vector<Sizes> few_queries() {
  const std::array<std::array<Index, 2>, 6> heads = {
      {{1, 1}, {4, 4}, {8, 2}, {6, 1}, {3, 3}, {12, 4}}};
  const std::array<Index, 14> keys = {1, 2, 7, 8, 9, 63, 64, 65, 200, 1023, 1024, 1025, 2050, 3000};
  const std::array<Index, 11> dims = {64, 1, 8, 16, 3, 40, 128, 9, 32, 72, 96};
  const std::array<Index, 9> widths = {64, 5, 8, 16, 33, 40, 7, 128, 24};
  const std::array<Index, 4> queries = {1, 3, 6, 16};
  std::vector<Sizes> result;
  for (std::size_t n = 0; n < 4 * keys.size(); ++n) {
    const auto& [query_heads, key_heads] = heads[n % heads.size()];
    result.push_back({.batch = 1 + static_cast<Index>(n % 3 == 0),
                      .heads = query_heads,
                      .key_heads = key_heads,
                      .queries = queries[n / keys.size()],
                      .keys = keys[n % keys.size()],
                      .dim = dims[n % dims.size()],
                      .width = widths[n % widths.size()]});
  }
  return result;
}

/// One type for every predicate, so that the loop is compiled once for all of them.
using Predicate = std::function<bool(Index b, Index h, Index i, Index j)>;

/// Every third of them, for formulas that take long.
std::vector<Sizes> fewer() {
  std::vector<Sizes> result;
  for (std::size_t n = 0; n < few_queries().size(); n += 3) result.push_back(few_queries()[n]);
  return result;
}

/// attention_forward alone: the weights come from the other engine.
template <class Scalar, class Score, class Mask, class Formula, class Allowed>
void expect_forward(const Sizes& sizes, const Score& score, const Mask& mask,
                    const Formula& formula, const Allowed& allowed, double magnitude = 0) {
  SCOPED_TRACE(text(sizes));
  const Inputs in = Inputs(sizes).rounded_to<Scalar>();
  const Expected<Scalar> expected(
      in.query, in.key, in.value, formula, allowed, [](auto...) { return 1.0; }, magnitude);
  const auto pass = attention_forward(make<Scalar, 4>(in.query), make<Scalar, 4>(in.key),
                                      make<Scalar, 4>(in.value), score, mask);
  EXPECT_TRUE(expected.accepts(pass.output));
  EXPECT_TRUE(expected.accepts_log_sum_exp(pass.log_sum_exp));
}

TEST(FewQueries, OfEveryShape) {
  for (const Sizes& sizes : few_queries()) {
    expect_forward<float>(sizes, scaled_dot_product(), no_mask(), scaled_dot(), everything());
  }
}

TEST(FewQueries, OfHalf) {
  for (const Sizes& sizes : few_queries()) {
    expect_forward<Eigen::half>(sizes, scaled_dot_product(), no_mask(), scaled_dot(), everything());
  }
}

TEST(FewQueries, OfDoubleUnderMasksOfIntervals) {
  for (const Sizes& sizes : fewer()) {
    const Index shift = sizes.keys - sizes.queries;
    expect_forward<double>(sizes, scaled_dot_product(),
                           (causal() && sliding_window(70, -1)) || prefix(5), scaled_dot(),
                           [=](Index, Index, Index i, Index j) {
                             return j < 5 || (j <= i + shift && j >= i + shift - 70);
                           });
  }
}

TEST(FewQueries, UnderAMaskOfPairs) {
  const Predicate allowed = [](Index b, Index h, Index i, Index j) {
    return (b + 2 * h + 3 * i + j) % 5 != 0;
  };
  for (const Sizes& sizes : few_queries()) {
    expect_forward<float>(sizes, scaled_dot_product(), mask_if(allowed), scaled_dot(), allowed);
  }
}

TEST(FewQueries, WithModifiers) {
  for (const Sizes& sizes : fewer()) {
    const Reference added = random({1, sizes.heads, sizes.queries, sizes.keys}, 8);
    const auto t = make<float, 4>(added);
    const auto slopes = vector_of<float>(sizes.heads, 7, .01);
    const auto score = gaussian(.5) | bias(t) | softcap(3) | alibi(slopes);
    expect_forward<float>(
        sizes, score, no_mask(),
        [&](const auto& p) {
          using Real = RealOf<decltype(p)>;
          const Real s = -squared_distance(p) / 8 + static_cast<Real>(added(0, p.h, p.i, p.j));
          return 3 * std::tanh(s / 3) +
                 static_cast<Real>(slopes(p.h)) * static_cast<Real>(p.j - p.i);
        },
        everything(), 30);
  }
}

TEST(FewQueries, WithScoresThatDifferFromFeatureToFeature) {
  for (const Sizes& sizes : fewer()) {
    const auto w = vector_of<float>(sizes.dim, 4);
    expect_forward<float>(
        sizes, additive(w), no_mask(),
        [&](const auto& p) {
          RealOf<decltype(p)> sum = 0;
          for (std::size_t d = 0; d < p.query.size(); ++d) {
            sum += static_cast<RealOf<decltype(p)>>(w(static_cast<Index>(d))) *
                   std::tanh(p.query[d] + p.key[d]);
          }
          return sum;
        },
        everything(), static_cast<double>(w.cwiseAbs().sum()));
  }
}

TEST(FewQueries, WithATransformOfTheQuery) {
  for (Sizes sizes : fewer()) {
    sizes.key_dim = sizes.dim + 3;
    const auto m = make<float, 2>(random({1, 1, sizes.dim, sizes.key_dim}, 6, .2));
    expect_forward<float>(sizes, bilinear(m), no_mask(), bilinear_form(m), everything(), 4);
  }
}

TEST(FewQueries, OfViewsOfAnyStride) {
  for (const Sizes& sizes : few_queries()) {
    if (sizes.keys > 300) continue;
    const Inputs in(sizes);
    const Expected<float> expected(in.query, in.key, in.value, scaled_dot(), everything());
    for (std::size_t n = 0; n < directions.size(); ++n) {
      Scattered<float> q(in.query, directions[n]), k(in.key, directions[(n + 1) % 4]),
          v(in.value, directions[(n + 2) % 4]);
      Scattered<float> out(constant(expected.output.dimensions(), nan), directions[(n + 3) % 4]);
      attention_into(out.view(), q.view(), k.view(), v.view());
      EXPECT_TRUE(expected.accepts(out.view())) << text(sizes);
      EXPECT_EQ(out.written(), expected.output.size()) << text(sizes);
    }
  }
}

TEST(FewQueries, DropWhatTheirPlaceSays) {
  // The pattern of a query does not depend on how many there are, and so on which loop runs.
  const Sizes many{
      .batch = 2, .heads = 4, .key_heads = 2, .queries = 30, .keys = 1500, .dim = 8, .width = 8};
  Inputs in(many);
  const AttentionOptions options{.dropout = .4, .seed = 11};
  const auto k = make<float, 4>(in.key), v = make<float, 4>(in.value);
  const Reference all = reference(
      attention(make<float, 4>(in.query), k, v, scaled_dot_product(), no_mask(), options));
  const Reference few = reference(attention(make<float, 4>(rows(in.query, 0, 2)), k, v,
                                            scaled_dot_product(), no_mask(), options));
  EXPECT_TRUE(near(few, rows(all, 0, 2), 1e-5));
}

TEST(FewQueries, WithoutAKey) {
  const Sizes sizes{
      .batch = 2, .heads = 4, .key_heads = 2, .queries = 2, .keys = 1500, .dim = 8, .width = 16};
  expect_forward<float>(sizes, scaled_dot_product(), valid_lens({0, 1100}), scaled_dot(),
                        [](Index b, Index, Index, Index j) { return b == 1 && j < 1100; });
  const Predicate only_some = [](Index, Index h, Index i, Index j) {
    return h == 1 && i == 1 && j > 1200;
  };
  expect_forward<float>(sizes, scaled_dot_product(), mask_if(only_some), scaled_dot(), only_some);
  expect_forward<float>(
      {.batch = 1, .heads = 4, .key_heads = 2, .queries = 1, .keys = 1, .dim = 3, .width = 2},
      scaled_dot_product(), valid_lens({0}), scaled_dot(),
      [](Index, Index, Index, Index) { return false; });
}

TEST(FewQueries, HiddenKeysReachNothing) {
  const Sizes sizes{
      .batch = 1, .heads = 6, .key_heads = 2, .queries = 2, .keys = 1300, .dim = 16, .width = 8};
  const Inputs in(sizes);
  const auto q = make<float, 4>(in.query);
  // The second query sees one key more; every sixth key is poison that only some heads may see.
  const Predicate allowed = [](Index, Index h, Index i, Index j) {
    return j <= 1200 + i && (j % 6 != 0 || h == 2);
  };
  const auto run = [&](double poison) {
    Inputs dirty = in;
    for_each_index(in.key.dimensions(), [&](Index b, Index h, Index j, Index d) {
      if (j > 1201 || j % 6 == 0) dirty.key(b, h, j, d) = poison;
    });
    for_each_index(in.value.dimensions(), [&](Index b, Index h, Index j, Index c) {
      if (j > 1201 || j % 6 == 0) dirty.value(b, h, j, c) = poison;
    });
    const auto pass = attention_forward(q, make<float, 4>(dirty.key), make<float, 4>(dirty.value),
                                        scaled_dot_product(), mask_if(allowed));
    return std::pair(reference(pass.output), reference_rows(pass.log_sum_exp));
  };
  const auto [clean, clean_lse] = run(0);
  for (const double poison : {nan, infinity, -infinity, 1e38}) {
    const auto [dirty, dirty_lse] = run(poison);
    Index wrong = 0;
    for (const Index h : {0, 1, 3, 4, 5}) {
      for (Index i = 0; i < 2; ++i) {
        for (Index c = 0; c < 8; ++c) wrong += !(dirty(0, h, i, c) == clean(0, h, i, c));
        wrong += !(dirty_lse(0, h, i, 0) == clean_lse(0, h, i, 0));
      }
    }
    EXPECT_EQ(wrong, 0) << "poison " << poison;
  }
}

TEST(FewQueries, ThreadsChangeNoBit) {
  for (const Sizes& sizes : {Sizes{.queries = 1, .keys = 9000, .dim = 16, .width = 16},
                             Sizes{.batch = 2,
                                   .heads = 6,
                                   .key_heads = 3,
                                   .queries = 3,
                                   .keys = 4000,
                                   .dim = 9,
                                   .width = 7},
                             Sizes{.batch = 8,
                                   .heads = 8,
                                   .key_heads = 8,
                                   .queries = 1,
                                   .keys = 1200,
                                   .dim = 8,
                                   .width = 8}}) {
    const Inputs in(sizes);
    const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key),
               v = make<float, 4>(in.value);
    const auto alone = attention_forward(q, k, v);
    for (const int threads : {1, 2, 3}) {
      Eigen::ThreadPool pool(threads);
      const auto pass =
          attention_forward(q, k, v, scaled_dot_product(), no_mask(), {.pool = &pool});
      EXPECT_TRUE(same(reference(pass.output), reference(alone.output))) << threads << " threads";
      EXPECT_TRUE(same(reference_rows(pass.log_sum_exp), reference_rows(alone.log_sum_exp)))
          << threads << " threads";
    }
  }
}

// One score above all others, at every end of a tile and a chunk, below or above a crowd at -1e30.
TEST(FewQueries, ScoresOfAnySize) {
  for (const float high : {30.F, 1e4F, 3e6F, 1e30F}) {
    for (const Index place : {0, 63, 64, 1023, 1024, 2047, 2099}) {
      Matrix<float> query(2, 1), key(2100, 1), value(2100, 1);
      query << 1, -1;
      key.setConstant(-high);
      key(place) = high;
      value.setConstant(5);
      value(place) = 3;
      const auto pass = attention_forward(query, key, value, dot_product());
      EXPECT_NEAR(pass.output(0, 0), 3, 1e-6) << high << " at " << place;
      EXPECT_NEAR(pass.output(1, 0), 5, 1e-6) << high << " at " << place;
      EXPECT_NEAR(pass.log_sum_exp(0) / high, 1, 1e-6);
    }
  }
}

}  // namespace
}  // namespace heed::test
