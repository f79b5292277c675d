#include "heed/tensor.hpp"

#include "support.hpp"

namespace heed::test {
namespace {

/// Every element of a rank-2 view is the element of x at the same place in memory.
template <class V, class X>
void expect_window(const V& v, X&& x) {
  ASSERT_EQ(v.shape[0], x.rows());
  ASSERT_EQ(v.shape[1], x.cols());
  for (Index i = 0; i < x.rows(); ++i) {
    for (Index j = 0; j < x.cols(); ++j) EXPECT_EQ(&v(i, j), &x.coeffRef(i, j)) << i << ", " << j;
  }
}

TEST(View, OfMatricesOfEitherOrder) {
  Matrix<float> row_major(3, 4);
  Eigen::MatrixXd column_major(3, 4);
  Eigen::ArrayXXf array(2, 5);
  expect_window(view(row_major), row_major);
  expect_window(view(column_major), column_major);
  expect_window(view(array), array);
  EXPECT_EQ(view(row_major).strides, (std::array<Index, 2>{4, 1}));
  EXPECT_EQ(view(column_major).strides, (std::array<Index, 2>{1, 3}));
}

TEST(View, OfFixedSizesAndVectors) {
  Eigen::Matrix<float, 2, 3> fixed;
  Eigen::Vector4d column;
  Eigen::RowVector3f row;
  expect_window(view(fixed), fixed);
  expect_window(view(column), column);
  expect_window(view(row), row);
}

TEST(View, OfBlocksMapsRefsAndTransposes) {
  Matrix<float> x(6, 7);
  auto block = x.block(1, 2, 3, 4);
  expect_window(view(block), block);
  auto columns = x.middleCols(2, 3);
  expect_window(view(columns), columns);
  auto turned = x.transpose();
  expect_window(view(turned), turned);
  Eigen::Ref<Eigen::MatrixXf, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>> ref = turned;
  expect_window(view(ref), ref);
  std::vector<double> memory(60);
  Eigen::Map<Eigen::MatrixXd, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>> map(
      memory.data(), 3, 4, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(11, 3));
  expect_window(view(map), map);
}

using Plain = Matrix<float>;
struct Named : Plain {
  using Plain::Plain;
};

TEST(View, OfSegmentsAndOfClassesDerivedFromMatrices) {
  Eigen::VectorXf x(9);
  auto segment = x.segment(2, 4);
  expect_window(view(segment), segment);
  Matrix<float> m(3, 4);
  auto tail = m.col(1).tail(2);
  expect_window(view(tail), tail);
  EXPECT_EQ(view(m.row(2).head(3)).strides[1], 1);
  Named named(2, 3);
  expect_window(view(named), named);
}

TEST(View, OfTensorsOfEitherOrder) {
  Tensor<float, 3> row_major(2, 3, 4);
  Eigen::Tensor<float, 3> column_major(2, 3, 4);
  EXPECT_EQ(view(row_major).strides, (std::array<Index, 3>{12, 4, 1}));
  EXPECT_EQ(view(column_major).strides, (std::array<Index, 3>{1, 2, 6}));
  for (Index b = 0; b < 2; ++b) {
    for (Index i = 0; i < 3; ++i) {
      for (Index j = 0; j < 4; ++j) {
        EXPECT_EQ(&view(row_major)(b, i, j), &row_major(b, i, j));
        EXPECT_EQ(&view(column_major)(b, i, j), &column_major(b, i, j));
      }
    }
  }
  Eigen::TensorMap<Eigen::Tensor<float, 2>> map(row_major.data(), 6, 4);
  EXPECT_EQ(&view(map)(5, 3), &map(5, 3));
  Tensor<double, 4> four(2, 1, 3, 5);
  EXPECT_EQ(&view(four)(1, 0, 2, 4), &four(1, 0, 2, 4));
  EXPECT_EQ(view(four).size(), 30);
}

TEST(View, ConstFollowsTheElements) {
  Matrix<float> x(2, 2);
  const Matrix<float>& fixed = x;
  static_assert(std::is_same_v<decltype(view(x)), View<float, 2>>);
  static_assert(std::is_same_v<decltype(view(fixed)), View<const float, 2>>);
  Tensor<double, 3> t(1, 1, 1);
  const Tensor<double, 3>& fixed_tensor = t;
  static_assert(std::is_same_v<decltype(view(t)), View<double, 3>>);
  static_assert(std::is_same_v<decltype(view(fixed_tensor)), View<const double, 3>>);
  const View<const float, 2> reads = view(x);
  view(x)(1, 0) = 5;
  EXPECT_EQ(reads(1, 0), 5);
  const View<float, 2> again = view(view(x));
  EXPECT_EQ(again.data, x.data());
}

TEST(View, StridesOfAnySign) {
  std::vector<int> memory{0, 1, 2, 3, 4, 5, 6, 7, 8};
  const View<int, 2> v{memory.data() + 8, {2, 3}, {-4, -1}};
  EXPECT_EQ(v(0, 0), 8);
  EXPECT_EQ(v(0, 2), 6);
  EXPECT_EQ(v(1, 0), 4);
  EXPECT_EQ(v(1, 2), 2);
  const View<int, 2> repeated{memory.data(), {5, 3}, {0, 1}};
  EXPECT_EQ(repeated(4, 2), 2);
}

TEST(View, OfNothing) {
  Matrix<float> x(0, 4);
  EXPECT_EQ(view(x).size(), 0);
  EXPECT_EQ(view(x).shape, (std::array<Index, 2>{0, 4}));
  Tensor<float, 3> t(2, 0, 3);
  EXPECT_EQ(view(t).size(), 0);
}

template <int Order>
void expect_split_heads() {
  Eigen::Tensor<float, 3, Order, Index> x(2, 3, 8);
  const auto heads = split_heads(x, 4);
  ASSERT_EQ(heads.shape, (Shape{2, 4, 3, 2}));
  for_each_index({2, 4, 3, 2}, [&](Index b, Index h, Index i, Index d) {
    EXPECT_EQ(&heads(b, h, i, d), &x(b, i, 2 * h + d));
  });
}

TEST(SplitHeads, CutsTheLastAxis) {
  expect_split_heads<Eigen::RowMajor>();
  expect_split_heads<Eigen::ColMajor>();
}

TEST(SplitHeads, OfAView) {
  Tensor<float, 3> x(2, 8, 3);
  const auto heads = split_heads(transposed(x), 2);
  ASSERT_EQ(heads.shape, (Shape{2, 2, 3, 4}));
  EXPECT_EQ(&heads(1, 1, 2, 3), &x(1, 7, 2));
}

TEST(SplitHeads, RefusesWhatDoesNotDivide) {
  Tensor<float, 3> x(2, 3, 8);
  EXPECT_TRUE(refuses([&] { split_heads(x, 3); }, {"heed::split_heads", "(2, 3, 8)", "3 heads"}));
  EXPECT_TRUE(refuses([&] { split_heads(x, 0); }, {"heed::split_heads", "0"}));
  EXPECT_TRUE(refuses([&] { split_heads(x, -2); }, {"heed::split_heads", "-2"}));
}

TEST(Transposed, SwapsTheLastTwoAxes) {
  Matrix<float> m(2, 3);
  EXPECT_EQ(transposed(m).shape, (std::array<Index, 2>{3, 2}));
  EXPECT_EQ(&transposed(m)(2, 1), &m(1, 2));
  Tensor<float, 4> t(2, 3, 4, 5);
  const auto turned = transposed(t);
  EXPECT_EQ(turned.shape, (Shape{2, 3, 5, 4}));
  EXPECT_EQ(&turned(1, 2, 4, 3), &t(1, 2, 3, 4));
  EXPECT_EQ(&transposed(turned)(1, 2, 3, 4), &t(1, 2, 3, 4));
}

// The shortest digits from which the number can be read again.
TEST(Text, OfNumbers) {
  using detail::text;
  EXPECT_EQ(text(.1), "0.1");
  EXPECT_EQ(text(.1F), "0.1");
  EXPECT_EQ(text(-1e-9), "-1e-09");
  EXPECT_EQ(text(1e308), "1e+308");
  EXPECT_EQ(text(2.), "2");
  EXPECT_EQ(text(0x1p-1074), "5e-324");
  EXPECT_EQ(text(nan), "nan");
  EXPECT_EQ(text(-infinity), "-inf");
  EXPECT_EQ(text(1.L / 4), "0.25");
  const double third = 1. / 3;
  EXPECT_EQ(std::stod(text(third)), third);
  EXPECT_EQ(text(Index(-7)), "-7");
  EXPECT_EQ(text(7), "7");
}

TEST(Support, NearIsFalseForNaNAndForShapes) {
  Reference a(1, 1, 1, 2), b(1, 1, 1, 2);
  a.setValues({{{{1, 2}}}});
  b.setValues({{{{1, nan}}}});
  EXPECT_TRUE(near(a, a, 0));
  EXPECT_FALSE(near(b, a, 1e300));
  EXPECT_FALSE(near(a, b, 1e300));
  EXPECT_FALSE(near(b, b, 1e300));
  EXPECT_FALSE(near(a, Reference(1, 1, 2, 1), 1e300));
  b.setValues({{{{1, infinity}}}});
  EXPECT_TRUE(near(b, b, 0));
  EXPECT_FALSE(near(a, b, 1e300));
}

// One query 1.1, keys 1.6 and .7, weights by hand: e^1.76 / (e^1.76 + e^.77) = .72908792234.
TEST(Support, WitnessAgainstNumbersByHand) {
  Reference q(1, 1, 1, 1), k(1, 1, 3, 1);
  q.setValues({{{{1.1}}}});
  k.setValues({{{{1.6}, {.7}, {-.8}}}});
  const auto two = [](Index, Index, Index, Index j) { return j < 2; };
  const auto answer = attend<double>(q, k, k, dot(), two, [](auto...) { return 1.0; });
  EXPECT_NEAR(answer.weights(0, 0, 0, 0), .72908792234, 1e-11);
  EXPECT_NEAR(answer.weights(0, 0, 0, 1), .27091207765, 1e-11);
  EXPECT_EQ(answer.weights(0, 0, 0, 2), 0);
  EXPECT_NEAR(answer.output(0, 0, 0, 0), 1.3561791301, 1e-10);
  EXPECT_NEAR(answer.log_sum_exp(0, 0, 0, 0), std::log(std::exp(1.76) + std::exp(.77)), 1e-15);
}

}  // namespace
}  // namespace heed::test
