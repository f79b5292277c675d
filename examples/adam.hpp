#pragma once

#include <cmath>
#include <cstddef>
#include <vector>
#include <heed/tensor.hpp>

/// Gradient descent with a rate of its own for each number (Kingma and Ba, "Adam", 2015) and weight
/// decay apart from the gradient (Loshchilov and Hutter, "Decoupled weight decay regularization",
/// 2019), which pulls matrices towards 0 but not vectors: biases, scales and shifts stay free.
///
/// A step is begin_step(rate), then the object called with each parameter and its gradient, in the
/// same order at every step.
template <class Scalar>
class Adam {
 public:
  explicit Adam(double weight_decay = 0) : decay_(weight_decay) {}

  void begin_step(double rate) {
    ++step_;
    next_ = 0;
    rate_ = rate;
  }

  template <class Value, class Gradient>
  void operator()(Value& value, const Gradient& gradient) {
    if (next_ == moments_.size()) {
      moments_.push_back({Numbers::Zero(value.size()), Numbers::Zero(value.size())});
    }
    auto& [mean, square] = moments_[next_++];
    const Eigen::Map<const Numbers> slope(gradient.data(), gradient.size());
    Eigen::Map<Numbers> x(value.data(), value.size());
    mean += Scalar(1 - kMean) * (slope - mean);
    square += Scalar(1 - kSquare) * (slope.square() - square);
    // Both averages started at 0: what they hold falls short by 1 - k^step.
    const auto rate = static_cast<Scalar>(rate_ / (1 - std::pow(kMean, step_)));
    const auto share = static_cast<Scalar>(1 - std::pow(kSquare, step_));
    if (value.cols() > 1) x *= static_cast<Scalar>(1 - rate_ * decay_);
    x -= rate * mean / ((square / share).sqrt() + Scalar(1e-8));
  }

 private:
  using Numbers = Eigen::Array<Scalar, Eigen::Dynamic, 1>;
  struct Moments {
    Numbers mean, square;  // decaying averages of the gradient and of its square
  };
  static constexpr double kMean = .9, kSquare = .99;

  double decay_, rate_ = 0;
  int step_ = 0;
  std::size_t next_ = 0;
  std::vector<Moments> moments_;
};
