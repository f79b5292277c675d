#include "heed/kernel/epilogue.hpp"

#include <unsupported/Eigen/CXX11/ThreadPool>

#include "heed/kernel/gemm.hpp"
#include "support.hpp"

/// What is called with the blocks of a product sees every number once, when it is final.
namespace heed::detail {
namespace {

using test::Shape;

template <class Scalar>
View<Scalar, 4> dense(std::vector<Scalar>& numbers, const Shape& shape, bool columns_first) {
  numbers.assign(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]), Scalar(0));
  const Index matrix = shape[2] * shape[3];
  return {numbers.data(),
          shape,
          {shape[1] * matrix, matrix, columns_first ? 1 : shape[3], columns_first ? shape[2] : 1}};
}

/// Small whole numbers, so that every sum is exact: a(i, d) = i + d (mod 3), b(d, j) = d - j (mod
/// 3), and 1 more in the second head.
template <class A, class B>
void expect_blocks(Index m, Index k, Index n, bool transposed_b, bool columns_first,
                   Eigen::ThreadPoolInterface* pool) {
  SCOPED_TRACE(test::text(Shape{m, k, n, transposed_b}));
  std::vector<A> a_numbers, c_numbers;
  std::vector<B> b_numbers;
  const auto a = dense(a_numbers, {1, 2, m, k}, false);
  const auto b = dense(b_numbers, {1, 2, k, n}, transposed_b);
  const auto c = dense(c_numbers, {1, 2, m, n}, columns_first);
  test::for_each_index(a.shape, [&](Index batch, Index head, Index i, Index d) {
    a(batch, head, i, d) = A(static_cast<float>((i + d) % 3 + head));
  });
  test::for_each_index(b.shape, [&](Index batch, Index head, Index d, Index j) {
    b(batch, head, d, j) = B(static_cast<float>((2 * j + d) % 3));
  });
  // Twice what was seen, and the column.
  const auto finish = [&](const ProductBlock& at) {
    for (Index i = at.row; i < at.row + at.rows; ++i) {
      for (Index j = at.column; j < at.column + at.columns; ++j) {
        A& number = c(at.batch, at.head, i, j);
        number = A(number + number + A(static_cast<float>(j)));
      }
    }
  };
  multiply(a, b, c, pool, finish);
  Index wrong = 0;
  test::for_each_index(c.shape, [&](Index batch, Index head, Index i, Index j) {
    double sum = 0;
    for (Index d = 0; d < k; ++d) {
      sum += test::number(a(batch, head, i, d)) * test::number(b(batch, head, d, j));
    }
    wrong += test::number(c(batch, head, i, j)) != 2 * sum + static_cast<double>(j);
  });
  EXPECT_EQ(wrong, 0);
}

TEST(Epilogue, SeesEveryNumberOnceOnEveryPath) {
  Eigen::ThreadPool pool(3);
  // Few rows, rows in lanes, both factors packed in one run and in several; nothing to sum.
  for (const auto& [m, k, n] : {std::array<Index, 3>{1, 40, 70},
                                {5, 160, 131},
                                {20, 33, 55},
                                {200, 192, 200},
                                {250, 20, 50},
                                {30, 500, 20},
                                {3, 0, 5},
                                {1, 1, 1}}) {
    for (const bool transposed_b : {false, true}) {
      expect_blocks<float, float>(m, k, n, transposed_b, false, &pool);
      expect_blocks<float, float>(m, k, n, transposed_b, true, nullptr);
      expect_blocks<float, Eigen::bfloat16>(m, k, n, transposed_b, false, nullptr);
    }
  }
  expect_blocks<int, int>(7, 5, 6, false, false, &pool);
  expect_blocks<int, int>(110, 5, 6, true, true, &pool);
}

TEST(Epilogue, OfATransposedProductSeesBlocksAsTheyLie) {
  // Rows 2, 3 and columns 5 .. 7 of c are rows 5 .. 7 and columns 2, 3 of its transpose.
  ProductBlock seen{};
  const auto look = [&](const ProductBlock& block) { seen = block; };
  const Epilogue epilogue = look, turned = epilogue.turned();
  turned({1, 0, 5, 3, 2, 2});
  EXPECT_EQ(seen.row, 2);
  EXPECT_EQ(seen.rows, 2);
  EXPECT_EQ(seen.column, 5);
  EXPECT_EQ(seen.columns, 3);
  EXPECT_EQ(seen.batch, 1);
  turned.turned()({0, 1, 5, 3, 2, 2});
  EXPECT_EQ(seen.row, 5);
  EXPECT_EQ(seen.head, 1);
  Epilogue()({});
}

}  // namespace
}  // namespace heed::detail
