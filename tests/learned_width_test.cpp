#include "../examples/leave_one_out.hpp"

#include <gtest/gtest.h>

#include "../examples/noisy_curve.hpp"

namespace heed::test {
namespace {

// Where learning ends, a width a little larger or smaller predicts the left out points worse.
TEST(LearnedWidth, IsTheBestOfItsNeighbours) {
  const NoisyCurve data = noisy_curve(50);
  const Matrix<float>&x = data.x_train, &y = data.y_train;
  Vector<float> width = Vector<float>::Ones(1);
  const auto losses = learn_widths(
      width, x, y, [&](Vector<float>& gradient) { return gaussian(width(0), gradient(0)); },
      [&](const Matrix<float>& prediction, Matrix<float>& gradient) {
        gradient = 2 * (prediction - y) / static_cast<float>(y.rows());
        return (prediction - y).squaredNorm() / static_cast<float>(y.rows());
      },
      100, 0.1);
  const auto loss_of = [&](float w) {
    return (attention(x, x, y, gaussian(w), all_others) - y).squaredNorm() /
           static_cast<float>(y.rows());
  };
  EXPECT_EQ(losses.size(), 100u);
  EXPECT_TRUE(losses.back() <= 0.7f * losses.front()) << losses.front() << " to " << losses.back();
  EXPECT_LT(loss_of(width(0)), loss_of(1.1f * width(0)));
  EXPECT_LT(loss_of(width(0)), loss_of(width(0) / 1.1f));
}

}  // namespace
}  // namespace heed::test
