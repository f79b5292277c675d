#include "heed/matmul.hpp"

#include <unsupported/Eigen/CXX11/ThreadPool>

#include "support.hpp"

namespace heed::test {
namespace {

TEST(BatchedMatmul, ByHand) {
  Matrix<double> a(2, 3), b(3, 2), product(2, 2);
  a << 1, 2, 3, 4, 5, 6;
  b << 1, 0, 0, 1, 2, 2;
  product << 7, 8, 16, 17;
  const auto result = batched_matmul(a, b);
  static_assert(std::is_same_v<decltype(result), const Matrix<double>>);
  EXPECT_TRUE(same(reference(result), reference(product)));
}

Reference turned(const Reference& x) {
  return generate({x.dimension(0), x.dimension(1), x.dimension(3), x.dimension(2)},
                  [&](Index b, Index h, Index i, Index j) { return x(b, h, j, i); });
}

struct Product {
  Reference value;
  double bound;  // c sqrt(k) eps |A| |B|, the largest element
};

template <class Scalar>
Product witness(const Reference& a, const Reference& b) {
  using Real = std::conditional_t<std::is_same_v<Scalar, double>, double, float>;
  const Index depth = a.dimension(3);
  double magnitude = 0, largest = 0;
  Reference value = generate({a.dimension(0), a.dimension(1), a.dimension(2), b.dimension(3)},
                             [&](Index n, Index h, Index i, Index j) {
                               long double sum = 0;
                               double absolute = 0;
                               for (Index k = 0; k < depth; ++k) {
                                 sum += static_cast<long double>(a(n, h, i, k)) *
                                        static_cast<long double>(b(n, h, k, j));
                                 absolute += std::abs(a(n, h, i, k) * b(n, h, k, j));
                               }
                               magnitude = std::max(magnitude, absolute);
                               largest = std::max(largest, std::abs(static_cast<double>(sum)));
                               return static_cast<double>(sum);
                             });
  const double eps = epsilon<Real>();
  const double narrow = std::is_same_v<Scalar, Real> ? 0 : epsilon<Scalar>() / 2;
  return {std::move(value),
          2 * std::sqrt(static_cast<double>(depth)) * eps * magnitude + narrow * largest};
}

template <class Scalar, int Rank, int Order>
void expect_products(const Shape& left, Index columns) {
  const Reference a = rounded<Scalar>(random(left, 1));
  const Reference b = rounded<Scalar>(random({left[0], left[1], left[3], columns}, 2));
  SCOPED_TRACE(text(left) + " times " + std::to_string(columns) + " columns");
  const auto [value, bound] = witness<Scalar>(a, b);
  const auto x = make<Scalar, Rank, Order>(a), y = make<Scalar, Rank, Order>(b);
  const auto xt = make<Scalar, Rank, Order>(turned(a)), yt = make<Scalar, Rank, Order>(turned(b));
  EXPECT_TRUE(near(reference(batched_matmul(x, y)), value, bound)) << "A B";
  EXPECT_TRUE(near(reference(batched_matmul(x, transposed(yt))), value, bound)) << "A B^T";
  EXPECT_TRUE(near(reference(batched_matmul(transposed(xt), y)), value, bound)) << "A^T B";
  EXPECT_TRUE(near(reference(batched_matmul(transposed(xt), transposed(yt))), value, bound))
      << "A^T B^T";
}

TEST(BatchedMatmul, OfEveryShapeTransposedOrNot) {
  for (std::size_t n = 0; n < awkward.size(); ++n) {
    const Index rows = awkward[n], depth = awkward[(3 * n + 5) % awkward.size()];
    const Index columns = awkward[(7 * n + 11) % awkward.size()];
    expect_products<float, 4, Eigen::RowMajor>({1, 2, rows, depth}, columns);
    // Others, which run the same loops, take turns.
    switch (n % 4) {
      case 0:
        expect_products<float, 3, Eigen::ColMajor>({2, 1, rows, depth}, columns);
        break;
      case 1:
        expect_products<double, 3, Eigen::RowMajor>({2, 1, rows, depth}, columns);
        break;
      case 2:
        expect_products<double, 2, Eigen::ColMajor>({1, 1, rows, depth}, columns);
        break;
      default:
        expect_products<float, 2, Eigen::RowMajor>({1, 1, rows, depth}, columns);
    }
  }
  // Primes.
  expect_products<float, 2, Eigen::RowMajor>({1, 1, 61, 127}, 101);
  expect_products<double, 3, Eigen::RowMajor>({2, 1, 29, 67}, 43);
  // Deeper and wider than any block that stays in a cache.
  expect_products<float, 2, Eigen::RowMajor>({1, 1, 300, 1100}, 350);
  expect_products<double, 2, Eigen::RowMajor>({1, 1, 70, 1500}, 90);
}

// The caches decide what stays in them. In these, panels as deep as the product are few, so that b
// passes by rows of a for 64 or so of the depth at a time: over rows in place, over copies where
// the columns are many, and in two groups of columns.
TEST(BatchedMatmul, OfADepthThatNoCacheHolds) {
  const auto l1 = Eigen::l1CacheSize(), l2 = Eigen::l2CacheSize(), l3 = Eigen::l3CacheSize();
  Eigen::setCpuCacheSizes(8 << 10, 40 << 10, 80 << 10);
  expect_products<float, 2, Eigen::RowMajor>({1, 1, 29, 331}, 101);
  expect_products<float, 3, Eigen::RowMajor>({2, 1, 61, 150}, 1031);
  expect_products<double, 2, Eigen::ColMajor>({1, 1, 61, 150}, 521);
  expect_products<Eigen::bfloat16, 2, Eigen::RowMajor>({1, 1, 29, 331}, 1031);
  expect_products<float, 2, Eigen::RowMajor>({1, 1, 13, 150}, 17011);
  Eigen::setCpuCacheSizes(l1, l2, l3);
}

TEST(BatchedMatmul, AccumulatesNarrowNumbersInFloat) {
  expect_products<Eigen::half, 3, Eigen::RowMajor>({2, 1, 9, 200}, 25);
  expect_products<Eigen::bfloat16, 4, Eigen::RowMajor>({2, 2, 9, 200}, 25);
}

// 2048 + 4095/1000: half keeps no single .001 nor .5 beside 2048, where its numbers are 2 apart.
TEST(BatchedMatmul, LongSumsOfHalfAreNotHeldInHalf) {
  const Index depth = 4096;
  Matrix<Eigen::half> a(3, depth), b(depth, 5);
  a.setConstant(Eigen::half(.001F));
  a.col(0).setConstant(Eigen::half(2048.F));
  b.setConstant(Eigen::half(1.F));
  EXPECT_TRUE(near(reference(batched_matmul(a, b)), constant({1, 1, 3, 5}, 2052), 0));
}

TEST(BatchedMatmul, OfViewsOfAnyStride) {
  const Reference a = random({2, 3, 25, 49}, 1), b = random({2, 3, 49, 23}, 2);
  const auto [value, bound] = witness<float>(a, b);
  for (const auto& backwards : directions) {
    Scattered<float> x(a, backwards), y(b, backwards);
    EXPECT_TRUE(near(reference(batched_matmul(x.view(), y.view())), value, bound));
  }
}

TEST(BatchedMatmul, OfNumbersWithoutLanes) {
  const Reference a = random({2, 1, 5, 7}, 1), b = random({2, 1, 7, 3}, 2);
  const auto product = batched_matmul(make<long double, 3>(a), make<long double, 3>(b));
  for_each_index({2, 1, 5, 3}, [&](Index n, Index, Index i, Index j) {
    long double sum = 0;
    for (Index k = 0; k < 7; ++k)
      sum += static_cast<long double>(a(n, 0, i, k)) * static_cast<long double>(b(n, 0, k, j));
    EXPECT_TRUE(std::abs(product(n, i, j) - sum) <=
                8 * std::numeric_limits<long double>::epsilon());
  });
}

// Exact, beyond what float holds: (2^24 + 1) 3 + 5 (-7) = 50331616.
TEST(BatchedMatmul, OfIntegers) {
  Matrix<int> a(1, 2), b(2, 1);
  a << (1 << 24) + 1, 5;
  b << 3, -7;
  EXPECT_EQ(batched_matmul(a, b)(0, 0), 50331616);
  Tensor<std::int64_t, 3> x(2, 30, 40), y(2, 40, 20);
  for (Index n = 0; n < x.size(); ++n) x.data()[n] = n % 7 - 3;
  for (Index n = 0; n < y.size(); ++n) y.data()[n] = n % 5 - 2;
  const auto product = batched_matmul(x, y);
  for_each_index({2, 1, 30, 20}, [&](Index m, Index, Index i, Index j) {
    std::int64_t sum = 0;
    for (Index k = 0; k < 40; ++k) sum += x(m, i, k) * y(m, k, j);
    EXPECT_EQ(product(m, i, j), sum);
  });
}

TEST(BatchedMatmul, OfNothing) {
  EXPECT_EQ(batched_matmul(Matrix<float>(0, 3), Matrix<float>(3, 4)).size(), 0);
  EXPECT_EQ(batched_matmul(Tensor<float, 3>(0, 2, 3), Tensor<float, 3>(0, 3, 4)).size(), 0);
  EXPECT_TRUE(same(reference(batched_matmul(Matrix<float>(2, 0), Matrix<float>(0, 4))),
                   constant({1, 1, 2, 4}, 0)));
}

TEST(BatchedMatmul, IntoWritesInsideOfAViewAlone) {
  const Reference a = random({2, 2, 25, 30}, 1), b = random({2, 2, 30, 23}, 2);
  const auto x = make<float, 4>(a), y = make<float, 4>(b);
  const Reference expected = reference(batched_matmul(x, y));
  for (const auto& backwards : directions) {
    Scattered<float> out(constant({2, 2, 25, 23}, nan), backwards);
    batched_matmul_into(out.view(), x, y);
    EXPECT_TRUE(near(reference(out.view()), expected, 1e-5));
    EXPECT_EQ(out.written(), expected.size());
  }
}

// Rows shared, columns shared, and few rows by a transposed factor.
TEST(BatchedMatmul, ThreadsChangeNoBit) {
  const auto check = [](const auto& a, const auto& b) {
    const Reference alone = reference(batched_matmul(a, b));
    for (const int threads : {1, 2, 3}) {
      Eigen::ThreadPool pool(threads);
      Tensor<float, 3> out(2, view(a).shape[1], view(b).shape[2]);
      out.setConstant(nan);
      batched_matmul_into(out, a, b, &pool);
      EXPECT_TRUE(same(reference(out), alone));
    }
  };
  const auto a = make<float, 3>(random({2, 1, 300, 50}, 1)),
             few = make<float, 3>(random({2, 1, 50, 50}, 3));
  const auto turned = make<float, 3>(random({2, 1, 250, 50}, 4));
  check(a, make<float, 3>(random({2, 1, 50, 70}, 2)));
  check(a, make<float, 3>(random({2, 1, 50, 250}, 2)));
  check(few, transposed(turned));
  check(make<float, 3>(random({2, 1, 150, 1000}, 5)), make<float, 3>(random({2, 1, 1000, 400}, 6)));
}

TEST(BatchedMatmul, RefusesShapesThatDoNotFit) {
  const auto refused = [](const auto& a, const auto& b, std::initializer_list<std::string> parts) {
    EXPECT_TRUE(refuses([&] { batched_matmul(a, b); }, {"heed::batched_matmul"}));
    EXPECT_TRUE(refuses([&] { batched_matmul(a, b); }, parts));
  };
  refused(Matrix<float>(2, 13), Matrix<float>(17, 4), {"(2, 13)", "(17, 4)"});
  refused(Tensor<float, 3>(2, 5, 6), Tensor<float, 3>(3, 6, 4), {"(2, 5, 6)", "(3, 6, 4)"});
  refused(Tensor<float, 4>(2, 4, 5, 6), Tensor<float, 4>(2, 3, 6, 4),
          {"(2, 4, 5, 6)", "(2, 3, 6, 4)"});
}

// A = (1 2; 3 4), B = (1; 10), dC = (5; 7): dA = dC B^T = (5 50; 7 70), dB = A^T dC = (26; 38).
TEST(BatchedMatmulBackward, ByHand) {
  Matrix<double> a(2, 2), b(2, 1), grad(2, 1), da(2, 2), db(2, 1);
  a << 1, 2, 3, 4;
  b << 1, 10;
  grad << 5, 7;
  da << 5, 50, 7, 70;
  db << 26, 38;
  const auto result = batched_matmul_backward(a, b, grad);
  EXPECT_TRUE(same(reference(result.a), reference(da)));
  EXPECT_TRUE(same(reference(result.b), reference(db)));
  // Factors given as transposed(...) get gradients of the shape that they were seen in.
  const Matrix<double> at = a.transpose(), bt = b.transpose();
  const auto turned_result = batched_matmul_backward(transposed(at), transposed(bt), grad);
  EXPECT_TRUE(same(reference(turned_result.a), reference(da)));
  EXPECT_TRUE(same(reference(turned_result.b), reference(db)));
}

template <class Scalar, int Rank, int Order>
void expect_factor_gradients(const Shape& left, Index columns) {
  SCOPED_TRACE(text(left) + " times " + std::to_string(columns) + " columns");
  const Reference a = rounded<Scalar>(random(left, 1)),
                  b = rounded<Scalar>(random({left[0], left[1], left[3], columns}, 2)),
                  grad = rounded<Scalar>(random({left[0], left[1], left[2], columns}, 3));
  const auto da = witness<Scalar>(grad, turned(b)), db = witness<Scalar>(turned(a), grad);
  const auto x = make<Scalar, Rank, Order>(a), y = make<Scalar, Rank, Order>(b);
  const auto g = make<Scalar, Rank, Order>(grad);
  const auto result = batched_matmul_backward(x, y, g);
  if constexpr (Rank > 2) {
    static_assert(
        std::is_same_v<std::remove_cvref_t<decltype(result.a)>, std::remove_cvref_t<decltype(x)>>);
  }
  EXPECT_TRUE(near(reference(result.a), da.value, da.bound));
  EXPECT_TRUE(near(reference(result.b), db.value, db.bound));
  const auto xt = make<Scalar, Rank, Order>(turned(a)), yt = make<Scalar, Rank, Order>(turned(b));
  const auto views = batched_matmul_backward(transposed(xt), transposed(yt), g);
  EXPECT_TRUE(near(reference(views.a), da.value, da.bound));
  EXPECT_TRUE(near(reference(views.b), db.value, db.bound));
}

TEST(BatchedMatmulBackward, OfEveryShapeRankOrderAndNumber) {
  for (std::size_t n = 0; n < awkward.size(); ++n) {
    const Index rows = awkward[n], depth = awkward[(3 * n + 5) % awkward.size()];
    const Index columns = awkward[(7 * n + 11) % awkward.size()];
    switch (n % 3) {
      case 0:
        expect_factor_gradients<float, 4, Eigen::RowMajor>({2, 2, rows, depth}, columns);
        break;
      case 1:
        expect_factor_gradients<double, 3, Eigen::ColMajor>({2, 1, rows, depth}, columns);
        break;
      default:
        expect_factor_gradients<double, 2, Eigen::RowMajor>({1, 1, rows, depth}, columns);
    }
  }
  expect_factor_gradients<Eigen::half, 3, Eigen::RowMajor>({2, 1, 9, 200}, 25);
}

TEST(BatchedMatmulBackward, OfNothing) {
  const auto result =
      batched_matmul_backward(Matrix<float>(0, 3), Matrix<float>(3, 4), Matrix<float>(0, 4));
  EXPECT_EQ(result.a.rows(), 0);
  EXPECT_TRUE(same(reference(result.b), constant({1, 1, 3, 4}, 0)));
}

TEST(BatchedMatmulBackward, ThreadsChangeNoBit) {
  const auto a = make<float, 3>(random({2, 1, 300, 50}, 1)),
             b = make<float, 3>(random({2, 1, 50, 170}, 2)),
             grad = make<float, 3>(random({2, 1, 300, 170}, 3));
  const auto alone = batched_matmul_backward(a, b, grad);
  for (const int threads : {1, 2, 3}) {
    Eigen::ThreadPool pool(threads);
    const auto shared = batched_matmul_backward(a, b, grad, &pool);
    EXPECT_TRUE(same(reference(shared.a), reference(alone.a)));
    EXPECT_TRUE(same(reference(shared.b), reference(alone.b)));
  }
}

TEST(BatchedMatmulBackward, RefusesShapesThatDoNotFit) {
  EXPECT_TRUE(refuses(
      [] {
        batched_matmul_backward(Matrix<float>(2, 13), Matrix<float>(17, 4), Matrix<float>(2, 4));
      },
      {"heed::batched_matmul_backward", "(2, 13)", "(17, 4)"}));
  EXPECT_TRUE(refuses(
      [] {
        batched_matmul_backward(Matrix<float>(2, 3), Matrix<float>(3, 4), Matrix<float>(4, 2));
      },
      {"heed::batched_matmul_backward", "axis 0", "(2, 4)", "(4, 2)"}));
}

}  // namespace
}  // namespace heed::test
