#pragma once

#include "heed/linear.hpp"
#include "score_support.hpp"

namespace heed::test {

/// x W^T + b over the last axis, in double.
template <class Scalar>
Reference projected(const Linear<Scalar>& layer, const Reference& x) {
  const Shape shape = x.dimensions();
  EXPECT_EQ(layer.weight.cols(), shape[3]);
  return generate({shape[0], shape[1], shape[2], layer.weight.rows()},
                  [&](Index b, Index h, Index i, Index o) {
                    double sum = layer.bias.size() > 0 ? number(layer.bias(o)) : 0;
                    for (Index d = 0; d < shape[3]; ++d)
                      sum += number(layer.weight(o, d)) * x(b, h, i, d);
                    return sum;
                  });
}

/// (batch, 1, seq, heads * dim) as (batch, heads, seq, dim).
inline Reference split(const Reference& x, Index heads) {
  const Index dim = x.dimension(3) / heads;
  return generate({x.dimension(0), heads, x.dimension(2), dim},
                  [&](Index b, Index h, Index i, Index d) { return x(b, 0, i, h * dim + d); });
}

inline Reference merged(const Reference& x) {
  const Index dim = x.dimension(3);
  return generate({x.dimension(0), 1, x.dimension(2), x.dimension(1) * dim},
                  [&](Index b, Index, Index i, Index c) { return x(b, c / dim, i, c % dim); });
}

/// Xavier's uniform distribution (Glorot and Bengio, 2010): within sqrt(6 / (in + out)), mean 0,
/// variance 2 / (in + out).
template <class Scalar>
void expect_xavier(const Matrix<Scalar>& weight) {
  const double limit = std::sqrt(6 / static_cast<double>(weight.rows() + weight.cols()));
  const Matrix<double> w = weight.template cast<double>();
  const auto size = static_cast<double>(w.size());
  EXPECT_LE(w.cwiseAbs().maxCoeff(), limit * (1 + 1e-6));
  EXPECT_GE(w.cwiseAbs().maxCoeff(), limit * (1 - 20 / size));
  // Five standard deviations of a mean of uniform numbers and of their squares.
  EXPECT_LE(std::abs(w.mean()), 5 * limit / std::sqrt(3 * size));
  EXPECT_NEAR(w.squaredNorm() / size, limit * limit / 3,
              5 * limit * limit * std::sqrt(4 / (45 * size)));
}

/// sum of output times weights: a number whose gradient by the output is `weights`.
template <class Output>
double weighted(const Output& output, const Reference& weights) {
  const Reference y = reference(output);
  double sum = 0;
  for (Index n = 0; n < y.size(); ++n) sum += y.data()[n] * weights.data()[n];
  return sum;
}

/// `gradient` is of the shape of x, and the slope of `loss`, a smooth function that reads x, by
/// central differences.
template <class X, class Gradient, class Loss>
void expect_slopes(X& x, const Gradient& gradient, const Loss& loss, const std::string& name) {
  const auto value = detail::rank4(x);
  const auto slope = detail::rank4(gradient);
  ASSERT_EQ(value.shape, slope.shape) << name;
  double worst = 0;
  for_each_index(value.shape, [&](auto... at) {
    const double before = value(at...), step = 1e-5;
    value(at...) = before + step;
    const double above = loss();
    value(at...) = before - step;
    const double below = loss();
    value(at...) = before;
    // Of order step^2 is what the formula leaves out, epsilon / step what the losses round.
    const double error = std::abs(slope(at...) - (above - below) / (2 * step));
    if (!(error <= worst)) worst = error;
  });
  EXPECT_TRUE(worst <= 1e-8) << name << " is off by " << worst;
}

/// Inputs and parameters of a module of doubles, all against central differences.
template <class Module, class Q, class K, class V, class Mask>
void expect_module_slopes(Module module, Q query, K key, V value, const Mask& mask,
                          const AttentionOptions& options = {}) {
  const auto pass = module.forward(query, key, value, mask, options);
  const Reference weights = random(reference(pass.output).dimensions(), 99);
  auto grad_output = pass.output;
  const auto grad_view = detail::rank4(grad_output);
  for_each_index(grad_view.shape, [&](auto... at) { grad_view(at...) = weights(at...); });
  const auto gradients = module.backward(pass, grad_output);
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(gradients.parameters)>, Module>);
  const auto loss = [&] { return weighted(module(query, key, value, mask, options), weights); };
  expect_slopes(query, gradients.query, loss, "query");
  expect_slopes(key, gradients.key, loss, "key");
  expect_slopes(value, gradients.value, loss, "value");
  int parameter = 0;
  for_each_parameter(module, gradients.parameters, [&](auto& x, const auto& gradient) {
    expect_slopes(x, gradient, loss, "parameter " + std::to_string(parameter++));
  });
}

/// All numbers of the gradients, inputs and parameters, one after the other.
template <class Gradients>
std::vector<double> numbers(const Gradients& gradients) {
  std::vector<double> result;
  const auto append = [&](const auto& x) {
    const auto all = detail::rank4(x);
    for_each_index(all.shape, [&](auto... at) { result.push_back(number(all(at...))); });
  };
  append(gradients.query);
  append(gradients.key);
  append(gradients.value);
  for_each_parameter(gradients.parameters, gradients.parameters,
                     [&](const auto& x, const auto&) { append(x); });
  return result;
}

/// Gradient descent on the squared distance of the output from a target; the distances before each
/// step.
template <class Module, class Run>
std::vector<double> descend(Module& module, const Reference& target, int steps, double rate,
                            const Run& run) {
  std::vector<double> distances;
  for (int step = 0; step < steps; ++step) {
    const auto pass = run(module);
    auto grad_output = pass.output;
    const auto grad = detail::rank4(grad_output);
    double distance = 0;
    for_each_index(grad.shape, [&](auto... at) {
      grad(at...) -= target(at...);
      distance += grad(at...) * grad(at...);
    });
    distances.push_back(distance);
    const auto gradients = module.backward(pass, grad_output);
    for_each_parameter(module, gradients.parameters,
                       [rate](auto& x, const auto& gradient) { x -= rate * gradient; });
  }
  return distances;
}

}  // namespace heed::test
