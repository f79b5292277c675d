#include "backward_support.hpp"

namespace heed::test {
namespace {

constexpr Sizes sizes = {
    .batch = 1, .heads = 2, .key_heads = 1, .queries = 60, .keys = 70, .dim = 9, .width = 8};

void poison(Reference& x, Index row) {
  for (Index h = 0; h < x.dimension(1); ++h) {
    for (Index c = 0; c < x.dimension(3); ++c) x(0, h, row, c) = c % 2 == 0 ? nan : infinity;
  }
}

/// Rows `first` to `last` - 1 are the same, and the others are 0.
void expect_rows(const Reference& actual, const Reference& expected, Index first, Index last,
                 double bound, const char* what) {
  const Reference wanted = generate(expected.dimensions(), [&](Index b, Index h, Index i, Index c) {
    return i >= first && i < last ? expected(b, h, i, c) : 0;
  });
  EXPECT_TRUE(near_relative(actual, wanted, bound)) << what;
}

/// Ids that make `count` of n positions belong together and the rest to nobody.
std::vector<int> ids(Index n, Index count, int rest) {
  std::vector<int> result(static_cast<std::size_t>(n), 0);
  std::fill(result.begin() + count, result.end(), rest);
  return result;
}

template <class Scalar, class Score>
void expect_hidden_keys_do_not_matter(const Score& score) {
  const Inputs clean(sizes);
  Inputs in = clean;
  for (Index j = 50; j < 70; ++j) {
    poison(in.key, j);
    poison(in.value, j);
  }
  const auto grad_output = grad_output_for(in);
  const auto mask = segments(ids(60, 60, 0), ids(70, 50, 1));
  const auto expected = gradients_of<Scalar>(clean, grad_output, score, mask);
  const auto actual = gradients_of<Scalar>(in, grad_output, score, mask);
  const double bound = gradient_bound<float>();
  expect_rows(actual.query, expected.query, 0, 60, bound, "query");
  expect_rows(actual.key, expected.key, 0, 50, bound, "key");
  expect_rows(actual.value, expected.value, 0, 50, bound, "value");
}

template <class Scalar, class Score, class Mask>
void expect_empty_queries_do_not_matter(const Score& score, const Mask& mask) {
  const Inputs clean(sizes);
  Inputs in = clean;
  const Reference clean_grad = grad_output_for(in);
  Reference grad_output = clean_grad;
  for (Index i = 40; i < 60; ++i) {
    poison(in.query, i);
    poison(grad_output, i);
  }
  const auto expected = gradients_of<Scalar>(clean, clean_grad, score, mask);
  const auto actual = gradients_of<Scalar>(in, grad_output, score, mask);
  const double bound = gradient_bound<float>();
  expect_rows(actual.query, expected.query, 0, 40, bound, "query");
  expect_rows(actual.key, expected.key, 0, 70, bound, "key");
  expect_rows(actual.value, expected.value, 0, 70, bound, "value");
}

/// Two documents in one row: what is not finite in the second does not reach the first.
template <class Scalar, class Score>
void expect_documents_keep_to_themselves(const Score& score) {
  const Inputs clean(sizes);
  Inputs in = clean;
  const Reference clean_grad = grad_output_for(in);
  Reference grad_output = clean_grad;
  const auto mask = segments(ids(60, 30, 1), ids(70, 35, 1));
  poison(in.query, 31);
  poison(in.key, 36);
  poison(in.value, 37);
  poison(grad_output, 33);
  const auto expected = gradients_of<Scalar>(clean, clean_grad, score, mask);
  const auto actual = gradients_of<Scalar>(in, grad_output, score, mask);
  const double bound = gradient_bound<float>();
  EXPECT_TRUE(near_relative(rows(actual.query, 0, 30), rows(expected.query, 0, 30), bound));
  EXPECT_TRUE(near_relative(rows(actual.key, 0, 35), rows(expected.key, 0, 35), bound));
  EXPECT_TRUE(near_relative(rows(actual.value, 0, 35), rows(expected.value, 0, 35), bound));
}

template <class Scalar, class Score>
void expect_hidden_stays_hidden(const Score& score) {
  expect_hidden_keys_do_not_matter<Scalar>(score);
  expect_empty_queries_do_not_matter<Scalar>(score, segments(ids(60, 40, 1), ids(70, 70, 0)));
  expect_documents_keep_to_themselves<Scalar>(score);
}

TEST(BackwardHidden, UnderAMaskOfPairs) {
  expect_empty_queries_do_not_matter<float>(
      scaled_dot_product(),
      mask_if([](Index, Index, Index i, Index j) { return i < 40 && (i + j) % 3 != 0; }));
}
TEST(BackwardHidden, Products) { expect_hidden_stays_hidden<float>(scaled_dot_product()); }
TEST(BackwardHidden, ProductsByTheReference) {
  expect_hidden_stays_hidden<long double>(scaled_dot_product());
}
TEST(BackwardHidden, SumsOfTanh) {
  expect_hidden_stays_hidden<float>(additive(vector_of<float>(9, 3)));
}
TEST(BackwardHidden, LambdasWithInfiniteSlopes) {
  expect_hidden_stays_hidden<float>(pairwise([](auto q, auto k) {
                                      using std::sqrt;
                                      return sqrt((q - k) * (q - k) + 1) * -.5;
                                    }) |
                                    score_mod([](auto s, Index, Index, Index i, Index j) {
                                      return s + 1 / (static_cast<double>(j - i) - 45.5);
                                    }));
}

// Numbers whose difference, times what it is times, passes the largest float.
TEST(BackwardHidden, HugeKeysOfKernels) {
  const Inputs clean(sizes);
  Inputs in = clean;
  for (Index j = 3; j < 70; j += 7) {
    for (Index c = 0; c < 9; ++c) in.key(0, 0, j, c) = c % 2 == 0 ? 3e38 : -3e38;
  }
  const auto mask = mask_if([](Index, Index, Index, Index j) { return j % 7 != 3; });
  const auto grad_output = grad_output_for(in);
  const auto widths = vector_of<float>(9, 3);
  Vector<float> clean_dw = Vector<float>::Zero(9), dw = clean_dw;
  expect_near(gradients_of<float>(in, grad_output, gaussian(.5), mask),
              gradients_of<float>(clean, grad_output, gaussian(.5), mask), gradient_bound<float>());
  expect_near(gradients_of<float>(in, grad_output, gaussian(widths, dw), mask),
              gradients_of<float>(clean, grad_output, gaussian(widths, clean_dw), mask),
              gradient_bound<float>());
  EXPECT_TRUE((dw.array() == clean_dw.array()).all());
}

TEST(BackwardHidden, NaNInHiddenBiasesAndTheirGradients) {
  const Inputs in(sizes);
  const auto grad_output = grad_output_for(in);
  Matrix<float> clean = make<float, 2>(random({1, 1, 60, 70}, 8)), t = clean;
  for (Index i = 0; i < 60; ++i) {
    for (Index j = i + 11; j < 70; ++j) t(i, j) = static_cast<float>(nan);
  }
  Matrix<float> clean_dt = Matrix<float>::Zero(60, 70), dt = clean_dt;
  const auto expected =
      gradients_of<float>(in, grad_output, scaled_dot_product() | bias(clean, clean_dt), causal());
  const auto actual =
      gradients_of<float>(in, grad_output, scaled_dot_product() | bias(t, dt), causal());
  expect_near(actual, expected, gradient_bound<float>());
  EXPECT_TRUE((dt.array() == clean_dt.array()).all());
  EXPECT_EQ(dt(0, 11), 0);
}

// Scores of -infinity without a mask: the same as hidden.
TEST(BackwardHidden, ScoresOfMinusInfinity) {
  const Inputs in(sizes);
  const auto grad_output = grad_output_for(in);
  Matrix<float> t = Matrix<float>::Zero(60, 70);
  t.row(3).setConstant(static_cast<float>(-infinity));
  t.rightCols(20).setConstant(static_cast<float>(-infinity));
  const auto mask = mask_if([](Index, Index, Index i, Index j) { return i != 3 && j < 50; });
  expect_near(gradients_of<float>(in, grad_output, scaled_dot_product() | bias(t), no_mask()),
              gradients_of<float>(in, grad_output, scaled_dot_product(), mask),
              gradient_bound<float>());
}

}  // namespace
}  // namespace heed::test
