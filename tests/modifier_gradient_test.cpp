#include "backward_support.hpp"

namespace heed::test {
namespace {

TEST(ModifierGradients, SoftcapAfterAlibi) {
  Vector<double> slopes = vector_of<double>(4, 5), dslopes(4);
  check(scaled_dot_product() | alibi(slopes, dslopes) | softcap(1.5), causal(),
        {trainable(slopes, dslopes)});
}

TEST(ModifierGradients, BiasBetweenSoftcaps) {
  auto t = make<double, 4>(random({2, 4, 5, 6}, 8));
  auto dt = t;
  check(scaled_dot_product() | softcap(2) | bias(t, dt) | softcap(3), causal(), {trainable(t, dt)});
}

// The gradient of an axis that repeats is the sum over it, whatever the rank.
TEST(ModifierGradients, BiasOverAxesThatRepeat) {
  for (const Shape& shape : {Shape{2, 4, 5, 6}, Shape{1, 4, 5, 6}, Shape{2, 1, 5, 6},
                             Shape{2, 4, 1, 6}, Shape{1, 1, 5, 1}, Shape{1, 1, 1, 1}}) {
    SCOPED_TRACE(text(shape));
    auto t = make<double, 4>(random(shape, 8));
    auto dt = t;
    check(scaled_dot_product() | bias(t, dt), no_mask(), {trainable(t, dt)});
  }
  Matrix<double> t = make<double, 2>(random({1, 1, 5, 6}, 8)), dt = t;
  check(scaled_dot_product() | bias(t, dt), no_mask(), {trainable(t, dt)});
}

TEST(ModifierGradients, ScoreModOfScores) {
  check(scaled_dot_product() | score_mod([](auto s, Index, Index h, Index i, Index j) {
          using std::tanh;
          return s * tanh(s) * .5 + .1 * static_cast<double>(h + i - j);
        }),
        causal());
}

/// A whole number, or a vector of them, to compute with.
template <class T>
auto real(T whole) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<double>(whole);
  } else {
    return whole;
  }
}

TEST(ModifierGradients, ScoreModOfVectorsOfScores) {
  check(gaussian(.8) | score_mod([](auto s, auto, auto, auto i, auto j) {
          using std::max;
          return select(s > -.4, s, .2 * s) + .1 * real(j - i) + max(s, -.5);
        }),
        causal());
}

// Where i + 2 - j is 0 or negative the lambda gives infinity, NaN, and slopes like them.
TEST(ModifierGradients, InfiniteSlopesOfHiddenPairsDoNotMatter) {
  check(scaled_dot_product() | score_mod([](auto s, Index, Index, Index i, Index j) {
          using std::sqrt;
          return s / static_cast<double>(i + 2 - j) + sqrt(s * s + static_cast<double>(i + 2 - j));
        }),
        causal());
}

// Under dropout the loss is differentiable as well: the same weights are dropped each time.
TEST(ModifierGradients, Dropout) {
  expect_central_differences(Inputs(few), [] { return scaled_dot_product() | softcap(2); },
                             valid_lens({3, 6}), {}, {.dropout = .3, .seed = 5});
}

}  // namespace
}  // namespace heed::test
