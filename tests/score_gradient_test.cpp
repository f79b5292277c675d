#include "backward_support.hpp"

namespace heed::test {
namespace {

TEST(ScoreGradients, DotProducts) {
  check(scaled_dot_product());
  check(dot_product(-.3));
}

TEST(ScoreGradients, Additive) {
  Vector<double> w = vector_of<double>(3, 4), dw(3);
  check(additive(w, dw), causal(), {trainable(w, dw)});
  // Features on which e^2x overflows, so that pairs are computed by tanh itself.
  Inputs far(few);
  far.query(0, 1, 2, 1) = 400;
  far.key(0, 0, 3, 1) = -399.5;
  far.key(1, 1, 0, 2) = 50;
  expect_central_differences(far, [&] { return additive(w, dw); }, no_mask(), {trainable(w, dw)});
}

TEST(ScoreGradients, GaussianOfOneWidth) {
  double width = .7, dwidth = 0;
  expect_central_differences(Inputs(few), [&] { return gaussian(width, dwidth); }, causal(),
                             {Trainable{&width, &dwidth, 1}});
}

TEST(ScoreGradients, GaussianOfAWidthForEachFeature) {
  Vector<double> width = vector_of<double>(3, 4), dwidth(3);
  check(gaussian(width, dwidth), no_mask(), {trainable(width, dwidth)});
}

TEST(ScoreGradients, Kernels) {
  check(boxcar(1.2));
  check(triangular(4));
}

TEST(ScoreGradients, Bilinear) {
  Sizes sizes = few;
  sizes.key_dim = 4;
  Matrix<double> m = make<double, 2>(random({1, 1, 3, 4}, 6)), dm(3, 4);
  expect_central_differences(Inputs(sizes), [&] { return bilinear(m, dm); }, causal(),
                             {trainable(m, dm)});
}

TEST(ScoreGradients, PairwiseLambdasAreDifferentiated) {
  check(pairwise([](auto q, auto k) {
          using std::abs, std::exp;
          return -abs(q - k) * .3 + exp(q * k * -.1) / (1 + k * k);
        }),
        causal());
}

}  // namespace
}  // namespace heed::test
