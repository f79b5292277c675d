#include "../examples/vit.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "../examples/adam.hpp"
#include "../examples/distort.hpp"

namespace vit {
namespace {

template <class Scalar>
using Matrix = heed::Matrix<Scalar>;

/// One of the ten classes for each image, or a mixture of two.
template <class Scalar>
Matrix<Scalar> targets(Index images) {
  Matrix<Scalar> result = Matrix<Scalar>::Zero(images, kClasses);
  for (Index n = 0; n < images; ++n) {
    result(n, 3 * n % kClasses) = Scalar(.75);
    result(n, (3 * n + n % 2) % kClasses) += Scalar(.25);
  }
  return result;
}

TEST(VisionTransformer, GradientsAgreeWithCentralDifferences) {
  Random random(1);
  using Model = VisionTransformer<double>;
  Model model = make_vision_transformer<double>(8, 2, 2, random);
  // Away from the zeros and ones that biases, scales and shifts start at.
  heed::for_each_parameter(model, Model(model), [&](auto& value, const auto&) {
    for (Index i = 0; i < value.size(); ++i) value.data()[i] += .1 * random.normal();
  });
  const Matrix<double> images = random.normal_matrix(2, 64).cast<double>();
  const auto loss = [&] {
    Model::Pass pass;
    model.forward(images, pass);
    return cross_entropy(pass.logits, targets<double>(2)).first;
  };
  Model::Pass pass;
  model.forward(images, pass);
  const auto grad_logits = cross_entropy(pass.logits, targets<double>(2)).second;
  const Model gradients = model.backward(pass, grad_logits);

  Index parameters = 0;
  heed::for_each_parameter(model, gradients, [&](auto& value, const auto& gradient) {
    for (Index i = 0; i < value.size(); ++i) {
      // Truncation 1e-10 times a third derivative, rounding 1e-16 / 1e-5.
      const double at = value.data()[i], step = 1e-5;
      value.data()[i] = at + step;
      const double above = loss();
      value.data()[i] = at - step;
      const double below = loss();
      value.data()[i] = at;
      const double error = (above - below) / (2 * step) - gradient.data()[i];
      EXPECT_TRUE(std::abs(error) <= 1e-7)
          << error << " at element " << i << " of a parameter of " << value.rows() << " x "
          << value.cols() << ", after " << parameters << " others";
      ++parameters;
    }
  });
  // embedding 8 (4 + 1), positions 17 8, blocks of norms 2 16, attention 4 8 9, MLP 16 9 + 8 17,
  // norm 16, head 10 9.
  EXPECT_EQ(parameters, 40 + 136 + 2 * (32 + 288 + 144 + 136) + 16 + 90);
}

TEST(VisionTransformer, AFewStepsLowerTheLoss) {
  Random random(2);
  using Model = VisionTransformer<float>;
  Model model = make_vision_transformer<float>(16, 2, 4, random);
  const Matrix<float> images = random.normal_matrix(20, 64);
  Adam<float> adam(.01);
  std::vector<float> losses;
  for (int step = 0; step < 15; ++step) {
    Model::Pass pass;
    model.forward(images, pass);
    const auto [loss, grad_logits] = cross_entropy(pass.logits, targets<float>(20));
    losses.push_back(loss);
    const Model gradients = model.backward(pass, grad_logits);
    adam.begin_step(.01);
    heed::for_each_parameter(model, gradients, adam);
  }
  EXPECT_TRUE(losses.back() <= .5f * losses.front()) << losses.front() << " to " << losses.back();
}

// Every pixel of patch (row 1, column 2) and nothing else, row by row.
TEST(VisionTransformer, CutsPatches) {
  Matrix<float> image(1, 64);
  for (Index i = 0; i < 64; ++i) image(i) = static_cast<float>(i);
  const auto patches = cut(image);
  ASSERT_EQ(patches.dimension(1), 16);
  const Matrix<float> patch = rows(patches).row(6);
  EXPECT_EQ(patch, (Matrix<float>(1, 4) << 20, 21, 28, 29).finished());
}

// Logits (0, log 3): probabilities (1/4, 3/4). Target (1, 0): loss log 4, gradient (-3/4, 3/4).
TEST(CrossEntropy, ByHand) {
  const Matrix<double> logits = (Matrix<double>(1, 2) << 0, std::log(3.0)).finished();
  const auto [loss, gradient] =
      cross_entropy(logits, Matrix<double>(Matrix<double>::Identity(1, 2)));
  EXPECT_NEAR(loss, std::log(4.0), 1e-11);
  EXPECT_NEAR(gradient(0), -.75, 1e-12);
  EXPECT_NEAR(gradient(1), .75, 1e-12);
}

// The first step is rate sign(gradient), whatever the size of the gradient. The second, after
// gradients 1 and 3: mean (.1 .9 + .3) / .19 = 39/19, square (.01 .99 + .09) / .0199 = 999/199.
TEST(Adam, ByHand) {
  heed::Vector<double> x = heed::Vector<double>::Zero(2);
  Adam<double> adam(.5);
  adam.begin_step(.1);
  adam(x, heed::Vector<double>(Eigen::Vector2d(1, -1000)));
  EXPECT_NEAR(x(0), -.1, 1e-8);
  EXPECT_NEAR(x(1), .1, 1e-8);
  adam.begin_step(.1);
  adam(x, heed::Vector<double>(Eigen::Vector2d(3, -3000)));
  EXPECT_NEAR(x(0), -.1 - .1 * 39 / 19 / std::sqrt(999.0 / 199), 1e-8);
  EXPECT_NEAR(x(1), -x(0), 1e-8);
  // A matrix decays as well, by rate times weight decay; its gradient is 0.
  Matrix<double> weight = Matrix<double>::Constant(2, 2, 8);
  Adam<double> other(.5);
  other.begin_step(.1);
  other(weight, Matrix<double>(Matrix<double>::Zero(2, 2)));
  EXPECT_NEAR(weight(1, 1), 8 * .95, 1e-12);
}

TEST(Distort, LeavesAnImageAloneThatIsNotMoved) {
  Random random(3);
  const heed::Vector<float> image = random.normal_matrix(64, 1);
  const Distortion none{.rotation = 0, .stretch = 0, .shear = 0, .shift = 0, .bend = 0};
  EXPECT_EQ(distort(image, none, random), image);
}

// Whatever the shift, the middle of a plane that rises along rows and columns moves with it, and
// ink that stays inside is kept.
TEST(Distort, InterpolatesBetweenPixels) {
  heed::Vector<float> plane(64), dot = heed::Vector<float>::Zero(64);
  for (Index i = 0; i < 64; ++i) plane(i) = static_cast<float>(i / 8 + 10 * (i % 8));
  dot(27) = 1;
  const Distortion shifts{.rotation = 0, .stretch = 0, .shear = 0, .shift = 2, .bend = 0};
  for (unsigned seed = 0; seed < 10; ++seed) {
    Random random(seed), again(seed);
    const auto moved = distort(plane, shifts, random);
    EXPECT_NEAR(moved(36) - moved(27), 11, 1e-4);
    EXPECT_NEAR(moved(28) - moved(27), 10, 1e-4);
    EXPECT_EQ(moved, distort(plane, shifts, again)) << "one seed, two images";
    EXPECT_NEAR(distort(dot, shifts, random).sum(), 1, 1e-6);
  }
}

}  // namespace
}  // namespace vit
