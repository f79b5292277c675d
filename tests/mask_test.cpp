#include "heed/mask.hpp"

#include "mask_support.hpp"

namespace heed::test {
namespace {

TEST(NoMask, AllowsEverything) {
  for (const auto& [queries, keys] : lengths) {
    expect_mask({1, 2, queries, keys}, no_mask(), everything());
  }
}

// 3 queries, 5 keys, by hand. Bottom right: the last query sees all five.
TEST(Causal, ByHand) {
  const auto scores = make<double, 2>(constant({1, 1, 3, 5}, 0));
  Matrix<double> bottom_right(3, 5), top_left(3, 5);
  bottom_right << 1. / 3, 1. / 3, 1. / 3, 0, 0,  //
      .25, .25, .25, .25, 0,                     //
      .2, .2, .2, .2, .2;
  top_left << 1, 0, 0, 0, 0,  //
      .5, .5, 0, 0, 0,        //
      1. / 3, 1. / 3, 1. / 3, 0, 0;
  EXPECT_TRUE(near(reference(masked_softmax(scores, causal())), reference(bottom_right), 1e-15));
  EXPECT_TRUE(near(reference(masked_softmax(scores, causal(Align::bottom_right))),
                   reference(bottom_right), 1e-15));
  EXPECT_TRUE(
      near(reference(masked_softmax(scores, causal(Align::top_left))), reference(top_left), 1e-15));
}

// 5 queries, 3 keys, bottom right: the first two queries come before every key.
TEST(Causal, MoreQueriesThanKeys) {
  const auto scores = make<double, 2>(constant({1, 1, 5, 3}, 0));
  Matrix<double> weights(5, 3);
  weights << 0, 0, 0, 0, 0, 0, 1, 0, 0, .5, .5, 0, 1. / 3, 1. / 3, 1. / 3;
  EXPECT_TRUE(near(reference(masked_softmax(scores, causal())), reference(weights), 1e-15));
}

TEST(Causal, BothAlignments) {
  for (const auto& [queries, keys] : lengths) {
    for (const Align align : {Align::bottom_right, Align::top_left}) {
      expect_mask({2, 1, queries, keys}, causal(align),
                  [=, n = queries, m = keys](Index, Index, Index i, Index j) {
                    return j <= position(align, i, n, m);
                  });
    }
  }
}

TEST(SlidingWindow, KeepsBothEnds) {
  const auto scores = make<double, 2>(constant({1, 1, 4, 4}, 0));
  Matrix<double> weights(4, 4);
  weights << .5, .5, 0, 0,        //
      1. / 3, 1. / 3, 1. / 3, 0,  //
      .25, .25, .25, .25,         //
      0, 1. / 3, 1. / 3, 1. / 3;
  EXPECT_TRUE(
      near(reference(masked_softmax(scores, sliding_window(2, 1))), reference(weights), 1e-15));
}

TEST(SlidingWindow, BothAlignments) {
  const std::array<std::array<Index, 2>, 8> windows = {
      {{0, 0}, {1, 0}, {0, 3}, {30, 5}, {-1, 0}, {2, -1}, {-1, -1}, {500, 500}}};
  for (const auto& [queries, keys] : lengths) {
    for (const auto& [left, right] : windows) {
      for (const Align align : {Align::bottom_right, Align::top_left}) {
        SCOPED_TRACE(::testing::Message() << "window " << left << ", " << right);
        expect_mask(
            {1, 1, queries, keys}, sliding_window(left, right, align),
            [=, l = left, r = right, n = queries, m = keys](Index, Index, Index i, Index j) {
              const Index p = position(align, i, n, m);
              return (l < 0 || p - l <= j) && (r < 0 || j <= p + r);
            });
      }
    }
  }
}

TEST(Prefix, IsTheSameForEveryQuery) {
  for (const auto& [queries, keys] : lengths) {
    for (const Index n : {Index(0), Index(1), Index(5), keys, keys + 3}) {
      expect_mask({1, 1, queries, keys}, prefix(n),
                  [=](Index, Index, Index, Index j) { return j < n; });
    }
  }
}

TEST(ValidLens, OneForEachBatch) {
  for (const auto& [queries, keys] : lengths) {
    const std::vector<Index> lens = {keys, 0, keys / 2, keys + 7};
    expect_mask({4, 2, queries, keys}, valid_lens(lens), [&](Index b, Index, Index, Index j) {
      return j < lens[static_cast<std::size_t>(b)];
    });
  }
}

TEST(ValidLens, OneForEachQuery) {
  for (const auto& [queries, keys] : lengths) {
    Eigen::MatrixXi lens(2, queries);
    for (Index i = 0; i < queries; ++i) {
      lens(0, i) = static_cast<int>(i % (keys + 1));
      lens(1, i) = static_cast<int>(std::max<Index>(0, keys - 2 * i));
    }
    expect_mask({2, 2, queries, keys}, valid_lens(lens),
                [&](Index b, Index, Index i, Index j) { return j < lens(b, i); });
  }
}

TEST(ValidLens, TakesEveryContainerOfIntegers) {
  const auto scores = make<double, 3>(random({2, 1, 2, 4}, 5));
  const auto by_batch = reference(masked_softmax(scores, valid_lens(std::vector<int>{3, 2})));
  for_each_index({2, 1, 2, 4}, [&](Index b, Index, Index i, Index j) {
    EXPECT_EQ(by_batch(b, 0, i, j) > 0, j < 3 - b);
  });
  EXPECT_TRUE(same(reference(masked_softmax(scores, {3, 2})), by_batch));
  EXPECT_TRUE(same(reference(masked_softmax(scores, valid_lens({3, 2}))), by_batch));
  EXPECT_TRUE(same(reference(masked_softmax(scores, std::vector<Index>{3, 2})), by_batch));
  EXPECT_TRUE(same(reference(masked_softmax(scores, valid_lens(std::vector<std::int64_t>{3, 2}))),
                   by_batch));
  EXPECT_TRUE(same(reference(masked_softmax(scores, valid_lens(Eigen::Vector2i(3, 2)))), by_batch));
  Eigen::VectorXi vector(2);
  vector << 3, 2;
  EXPECT_TRUE(same(reference(masked_softmax(scores, vector)), by_batch));
  EXPECT_TRUE(same(reference(masked_softmax(scores, valid_lens(vector))), by_batch));
  Tensor<int, 1> tensor(2);
  tensor.setValues({3, 2});
  EXPECT_TRUE(same(reference(masked_softmax(scores, valid_lens(tensor))), by_batch));

  Matrix<int> matrix(2, 2);
  matrix << 1, 2, 3, 4;
  const auto by_query = reference(masked_softmax(scores, valid_lens(matrix)));
  for_each_index({2, 1, 2, 4}, [&](Index b, Index, Index i, Index j) {
    EXPECT_EQ(by_query(b, 0, i, j) > 0, j < 1 + 2 * b + i);
  });
  EXPECT_TRUE(same(reference(masked_softmax(scores, valid_lens({{1, 2}, {3, 4}}))), by_query));
  EXPECT_TRUE(same(reference(masked_softmax(scores, {{1, 2}, {3, 4}})), by_query));
  Eigen::Tensor<std::int64_t, 2> pairs(2, 2);  // column-major
  pairs.setValues({{1, 2}, {3, 4}});
  EXPECT_TRUE(same(reference(masked_softmax(scores, valid_lens(pairs))), by_query));
}

TEST(ValidLens, RankTwoHasOneLength) {
  const auto scores = make<double, 2>(random({1, 1, 3, 5}, 5));
  const auto weights = reference(masked_softmax(scores, {4}));
  for_each_index({1, 1, 3, 5}, [&](Index, Index, Index i, Index j) {
    EXPECT_EQ(weights(0, 0, i, j) > 0, j < 4);
  });
}

TEST(Segments, SharedByTheBatch) {
  for (const auto& [queries, keys] : lengths) {
    std::vector<int> query_ids, key_ids;
    for (Index i = 0; i < queries; ++i) query_ids.push_back(static_cast<int>(3 * i / queries));
    for (Index j = 0; j < keys; ++j) key_ids.push_back(static_cast<int>(4 * j / keys));
    expect_mask(
        {2, 1, queries, keys}, segments(query_ids, key_ids), [&](Index, Index, Index i, Index j) {
          return query_ids[static_cast<std::size_t>(i)] == key_ids[static_cast<std::size_t>(j)];
        });
  }
}

TEST(Segments, ScatteredIdsOfEachBatch) {
  for (const auto& [queries, keys] : lengths) {
    Eigen::MatrixXi query_ids(2, queries), key_ids(2, keys);
    for (Index b = 0; b < 2; ++b) {
      for (Index i = 0; i < queries; ++i) query_ids(b, i) = static_cast<int>(i * i % 7 - b);
      for (Index j = 0; j < keys; ++j) key_ids(b, j) = static_cast<int>(j % (3 + b));
    }
    expect_mask({2, 2, queries, keys}, segments(query_ids, key_ids),
                [&](Index b, Index, Index i, Index j) { return query_ids(b, i) == key_ids(b, j); });
  }
}

TEST(Allow, BroadcastsEveryAxis) {
  const Shape shape{2, 3, 30, 250};
  for (int axes = 0; axes < 16; ++axes) {
    Shape own = shape;
    for (std::size_t a = 0; a < 4; ++a) own[a] = (axes >> a & 1) != 0 ? 1 : shape[a];
    const auto pattern = [](Index b, Index h, Index i, Index j) {
      return (b * 5 + h * 3 + i * 7 + j * 11) % 4 != 0;
    };
    Tensor<bool, 4> allowed(own);
    for_each_index(own, [&](Index b, Index h, Index i, Index j) {
      allowed(b, h, i, j) = pattern(b, h, i, j);
    });
    expect_mask(shape, allow(allowed), [&](Index b, Index h, Index i, Index j) {
      return pattern(b % own[0], h % own[1], i % own[2], j % own[3]);
    });
  }
}

TEST(Allow, RankTwoIsQueriesByKeysAndRankThreeAddsBatch) {
  const Shape shape{2, 3, 5, 7};
  const auto pattern = [](Index b, Index i, Index j) { return (b + 2 * i + 3 * j) % 3 != 0; };
  Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic> two(5, 7);  // column-major
  Eigen::Tensor<bool, 3> three(2, 5, 7);
  for_each_index({2, 1, 5, 7}, [&](Index b, Index, Index i, Index j) {
    if (b == 0) two(i, j) = pattern(0, i, j);
    three(b, i, j) = pattern(b, i, j);
  });
  expect_mask(shape, allow(two), [&](Index, Index, Index i, Index j) { return pattern(0, i, j); });
  expect_mask(shape, allow(three),
              [&](Index b, Index, Index i, Index j) { return pattern(b, i, j); });
}

TEST(MaskIf, SeesBatchQueryHeadQueryAndKey) {
  const auto f = [](Index b, Index h, Index i, Index j) {
    return (3 * b + 5 * h + i * j) % 4 != 1;
  };
  for (const auto& [queries, keys] : lengths) expect_mask({2, 2, queries, keys}, mask_if(f), f);
}

TEST(MaskIf, TakesGenericIndices) {
  const auto f = [](auto b, auto h, auto i, auto j) { return j + h <= i + b; };
  expect_mask({2, 3, 50, 60}, mask_if(f), f);
}

TEST(Masks, CountQueryHeadsWhenHeadsAreGrouped) {
  const auto f = [](Index, Index h, Index i, Index j) { return (h + i + j) % 3 != 0; };
  const Reference q = random({2, 6, 31, 4}, 1), k = random({2, 2, 45, 4}, 2),
                  v = random({2, 2, 45, 5}, 3);
  const Expected<float> expected(q, k, v, scaled_dot(), f);
  EXPECT_TRUE(expected.accepts(attention(make<float, 4>(q), make<float, 4>(k), make<float, 4>(v),
                                         scaled_dot_product(), mask_if(f))));
}

template <class Mask>
void expect_refused(const Mask& mask, std::initializer_list<std::string> numbers) {
  const auto scores = make<float, 3>(random({2, 1, 13, 17}, 3));
  EXPECT_TRUE(refuses([&] { masked_softmax(scores, mask); }, {"heed::masked_softmax"}));
  EXPECT_TRUE(refuses([&] { masked_softmax(scores, mask); }, numbers));
}

TEST(Masks, RefuseShapesThatDoNotFit) {
  expect_refused(valid_lens({3, 2, 19}), {"3", "2"});
  expect_refused(valid_lens({3}), {"1", "2"});
  expect_refused(valid_lens({3, -5}), {"-5"});
  expect_refused(valid_lens(Eigen::MatrixXi(Eigen::MatrixXi::Constant(2, 11, 3))), {"11", "13"});
  expect_refused(valid_lens(Eigen::MatrixXi(Eigen::MatrixXi::Constant(5, 13, 3))), {"5", "2"});
  expect_refused(valid_lens(Eigen::MatrixXi(Eigen::MatrixXi::Constant(2, 13, -1))), {"-1"});
  expect_refused(segments(std::vector<int>(11), std::vector<int>(17)), {"11", "13"});
  expect_refused(segments(std::vector<int>(13), std::vector<int>(19)), {"19", "17"});
  expect_refused(segments(Eigen::MatrixXi(Eigen::MatrixXi::Zero(3, 13)),
                          Eigen::MatrixXi(Eigen::MatrixXi::Zero(3, 17))),
                 {"3", "2"});
  Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic> two(13, 16);
  two.setConstant(true);
  expect_refused(allow(two), {"16", "17"});
  Tensor<bool, 4> four(2, 3, 13, 17);
  four.setConstant(true);
  expect_refused(allow(four), {"3", "13", "17"});
  EXPECT_TRUE(refuses([] { sliding_window(-2, 0); }, {"heed::sliding_window", "-2"}));
  EXPECT_TRUE(refuses([] { prefix(-3); }, {"heed::prefix", "-3"}));
  EXPECT_TRUE(refuses([] { valid_lens({{1, 2}, {3}}); }, {"heed::valid_lens"}));
  // A part of a composition is checked as the whole is.
  expect_refused(causal() && valid_lens({3}), {"1", "2"});
  expect_refused(causal() || valid_lens({3}), {"1", "2"});
  expect_refused(!valid_lens({3}), {"1", "2"});
}

}  // namespace
}  // namespace heed::test
