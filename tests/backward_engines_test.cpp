#include "backward_support.hpp"

namespace heed::test {
namespace {

/// The fused engine in Scalar gives what the reference engine gives in long double.
template <class Scalar, class Score, class Mask>
void expect_engines_agree(const Sizes& sizes, const Score& score, const Mask& mask,
                          const AttentionOptions& options = {}) {
  SCOPED_TRACE(text(sizes));
  const Inputs in = Inputs(sizes).rounded_to<Scalar>();
  const Reference grad_output = rounded<Scalar>(grad_output_for(in));
  expect_near(gradients_of<Scalar>(in, grad_output, score, mask, options),
              gradients_of<long double>(in, grad_output, score, mask, options),
              gradient_bound<Scalar>());
}

/// Lengths around the blocks, panels and tiles of the engine, and several pieces of work.
std::vector<Sizes> backward_sweep() {
  auto result = sweep();
  result.push_back({.queries = 97, .keys = 95, .dim = 130, .width = 128});
  result.push_back({.queries = 385, .keys = 97, .dim = 7, .width = 33});
  result.push_back({.heads = 4, .queries = 48, .keys = 400, .dim = 16, .width = 16});
  return result;
}

TEST(BackwardEngines, AgreeOverAwkwardShapes) {
  for (const Sizes& sizes : backward_sweep()) {
    expect_engines_agree<float>(sizes, scaled_dot_product(), causal());
    expect_engines_agree<double>(sizes, scaled_dot_product(), no_mask());
  }
}

TEST(BackwardEngines, AgreeOnNarrowNumbers) {
  for (const Sizes& sizes : backward_sweep()) {
    expect_engines_agree<Eigen::half>(sizes, scaled_dot_product(), causal());
  }
}

TEST(BackwardEngines, AgreeUnderMasksOfPairs) {
  const auto mask = mask_if([](Index, Index, Index i, Index j) {
                      return (7 * i + 3 * j) % 11 < 4 && i % 5 != 0;
                    }) ||
                    sliding_window(2, 0);
  for (const Sizes& sizes : backward_sweep()) {
    expect_engines_agree<float>(sizes, gaussian(.6), mask, {.dropout = .2, .seed = 9});
  }
}

TEST(BackwardEngines, AgreeOnParameters) {
  for (const Sizes& sizes : backward_sweep()) {
    SCOPED_TRACE(text(sizes));
    const Inputs in(sizes);
    const auto grad_output = grad_output_for(in);
    const auto w = vector_of<double>(sizes.dim, 4), slopes = vector_of<double>(sizes.heads, 5);
    const auto m = make<double, 2>(random({1, 1, sizes.dim, sizes.dim}, 6));
    Vector<double> dw[2], dslopes[2];
    Matrix<double> dm[2];
    double dwidth[2] = {0, 0};
    for (int n : {0, 1}) {
      dw[n].setZero(sizes.dim);
      dslopes[n].setZero(sizes.heads);
      dm[n].setZero(sizes.dim, sizes.dim);
      const auto run = [&]<class Scalar>(Scalar) {
        gradients_of<Scalar>(in, grad_output, additive(w, dw[n]) | alibi(slopes, dslopes[n]),
                             causal());
        gradients_of<Scalar>(in, grad_output, bilinear(m, dm[n]), no_mask());
        gradients_of<Scalar>(in, grad_output, gaussian(.5, dwidth[n]), causal());
      };
      n == 0 ? run(double()) : run(static_cast<long double>(0));
    }
    const auto close = [](const auto& a, const auto& b) {
      const double scale = 1 + (b.size() > 0 ? b.cwiseAbs().maxCoeff() : 0);
      return b.size() == 0 || (a - b).cwiseAbs().maxCoeff() <= 1e-12 * scale;
    };
    EXPECT_TRUE(close(dw[0], dw[1]));
    EXPECT_TRUE(close(dslopes[0], dslopes[1]));
    EXPECT_TRUE(close(dm[0], dm[1]));
    EXPECT_NEAR(dwidth[0], dwidth[1], 1e-12 * (1 + std::abs(dwidth[1])));
  }
}

}  // namespace
}  // namespace heed::test
