#include "heed/core/alias.hpp"

#include "heed/heed.hpp"
#include "support.hpp"

/// What is written shares no element with what is read, and no element of an output is two.
namespace heed::test {
namespace {

TEST(Alias, LatticesAgreeWithCounting) {
  // Small boxes of random strides over one buffer, element by element.
  std::mt19937 engine(5);
  const auto draw = [&](int low, int high) {
    return static_cast<Index>(std::uniform_int_distribution<int>(low, high)(engine));
  };
  std::vector<float> memory(4096);
  int shared = 0, apart = 0, doubled = 0;
  for (int trial = 0; trial < 4000; ++trial) {
    const auto box = [&] {
      View<float, 4> x{memory.data() + 1500 + draw(0, 40), {}, {}};
      for (std::size_t axis = 0; axis < 4; ++axis) {
        x.shape[axis] = draw(1, 4);
        x.strides[axis] = trial % 2 ? draw(-12, 12) : draw(0, 3) * draw(0, 12);
      }
      return x;
    };
    const auto a = box(), b = box();
    std::vector<int> count(memory.size());
    bool meets = false, twice = false;
    for_each_index(a.shape, [&](auto... at) {
      int& n = count[static_cast<std::size_t>(&a(at...) - memory.data())];
      twice = twice || n > 0;
      ++n;
    });
    for_each_index(b.shape, [&](auto... at) {
      meets = meets || count[static_cast<std::size_t>(&b(at...) - memory.data())] > 0;
    });
    EXPECT_EQ(detail::share_elements(a, b), meets) << trial;
    EXPECT_EQ(detail::share_elements(b, a), meets) << trial;
    EXPECT_EQ(detail::overlaps_itself(a), twice) << trial;
    ++(meets ? shared : apart);
    doubled += twice;
  }
  EXPECT_GT(std::min(shared, apart), 500);
  EXPECT_GT(doubled, 500);
}

TEST(Alias, BytesCount) {
  // A float in the middle of a double's eight bytes.
  std::array<double, 4> memory{};
  const View<double, 4> wide{memory.data(), {1, 1, 1, 2}, {0, 0, 0, 1}};
  const auto narrow = [&](Index offset) {
    return View<float, 4>{
        reinterpret_cast<float*>(memory.data()) + offset, {1, 1, 1, 1}, {0, 0, 0, 1}};
  };
  EXPECT_TRUE(detail::share_elements(wide, narrow(3)));
  EXPECT_FALSE(detail::share_elements(wide, narrow(4)));
}

TEST(Alias, BlocksOfOneMatrixThatOverlap) {
  Matrix<float> m = Matrix<float>::Random(200, 200);
  const Matrix<float> q = m.block(0, 0, 40, 20), k = q;
  EXPECT_TRUE(refuses([&] { attention_into(m.block(0, 10, 40, 20), q, k, m.block(20, 0, 40, 20)); },
                      {"attention_into", "the output shares elements with value"}));
  EXPECT_NO_THROW(attention_into(m.block(0, 20, 40, 20), q, k, m.block(20, 0, 40, 20)));
  const Matrix<float> b = Matrix<float>::Random(100, 100);
  EXPECT_TRUE(
      refuses([&] { batched_matmul_into(m.block(0, 50, 100, 100), m.block(50, 0, 100, 100), b); },
              {"batched_matmul_into", "shares elements with the first factor"}));
  const auto pass = attention_forward(q, k, q);
  using Block = decltype(m.block(0, 0, 1, 1));
  EXPECT_TRUE(refuses(
      [&] {
        attention_backward_into(
            AttentionGradients<Block, Block, Block>{m.block(0, 0, 40, 20), m.block(20, 10, 40, 20),
                                                    m.block(100, 0, 40, 20)},
            q, k, q, pass, pass.output);
      },
      {"gradients.query shares elements with gradients.key"}));
}

TEST(Alias, SlotsOfAPackedProjectionAreApart) {
  // (batch, seq, query | key | value | output of 2 heads x 8)
  Tensor<float, 3> packed(2, 10, 64);
  packed.setRandom();
  const auto slot = [&](Index n) {
    return View<float, 4>{packed.data() + 16 * n, {2, 2, 10, 8}, {640, 8, 64, 1}};
  };
  EXPECT_NO_THROW(attention_into(slot(3), slot(0), slot(1), slot(2)));
  EXPECT_TRUE(refuses([&] { attention_into(slot(2), slot(0), slot(1), slot(2)); }, {"value"}));
}

TEST(Alias, AnOutputThatRepeatsIsRefused) {
  const Matrix<float> q = Matrix<float>::Random(4, 8);
  Vector<float> row(8);
  const View<float, 2> repeated{row.data(), {4, 8}, {0, 1}};
  EXPECT_TRUE(refuses([&] { attention_into(repeated, q, q, q); }, {"overlap", "(0, 0, 0, 1)"}));
  EXPECT_TRUE(refuses([&] { batched_matmul_into(repeated, q, transposed(q)); }, {"shape"}));
  const Matrix<float> square = Matrix<float>::Random(8, 8);
  EXPECT_TRUE(refuses([&] { batched_matmul_into(repeated, q, square); }, {"overlap"}));
  Matrix<float> m(8, 8);
  const View<float, 2> leaning{m.data(), {4, 8}, {3, 1}};
  EXPECT_TRUE(refuses([&] { batched_matmul_into(leaning, q, square); }, {"overlap"}));

  Linear<float> linear{square, {}};
  EXPECT_TRUE(refuses([&] { linear.into(repeated, q); }, {"Linear", "overlap"}));

  const auto pass = attention_forward(q, q, q, gaussian(.5));
  float number = 0;
  const auto w = Vector<float>::Ones(8).eval();
  const View<float, 1> one_for_all{&number, {8}, {0}};
  const auto additive_pass = attention_forward(q, q, q, additive(w));
  EXPECT_TRUE(refuses(
      [&] {
        attention_backward(q, q, q, additive_pass, additive_pass.output, additive(w, one_for_all));
      },
      {"the gradient of a parameter", "overlap"}));
  EXPECT_EQ(number, 0);
}

TEST(Alias, AnOutputIsNoParameter) {
  Matrix<float> table = Matrix<float>::Random(8, 8);
  const Matrix<float> x = Matrix<float>::Random(8, 8);
  EXPECT_TRUE(refuses([&] { attention_into(table, x, x, x, scaled_dot_product() | bias(table)); },
                      {"the tensor of bias"}));
}

TEST(Alias, LinearReadsNothingThatItWrites) {
  Matrix<float> x = Matrix<float>::Random(16, 16);
  Linear<float> linear{Matrix<float>::Random(16, 16), Vector<float>::Random(16)};
  const Matrix<float> before = x, weight = linear.weight;
  EXPECT_TRUE(refuses([&] { linear.into(x, x); }, {"Linear", "shares elements with x"}));
  EXPECT_TRUE(refuses([&] { linear.into(linear.weight, x); }, {"the weight"}));
  Matrix<float> dx(16, 16);
  Linear<float> gradient;
  EXPECT_TRUE(refuses([&] { linear.backward_into(x, gradient, x, before); }, {"x"}));
  EXPECT_TRUE(refuses([&] { linear.backward_into(dx, linear, x, before); }, {"the weight"}));
  gradient.weight = x;
  EXPECT_TRUE(refuses([&] { linear.backward_into(dx, gradient, gradient.weight, before); },
                      {"the gradient of the parameters", "x"}));
  EXPECT_EQ(x, before);
  EXPECT_EQ(linear.weight, weight);
}

}  // namespace
}  // namespace heed::test
