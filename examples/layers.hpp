#pragma once

#include <cmath>
#include <utility>
#include <heed/heed.hpp>

#include "random.hpp"

/// The parts of a transformer that are not attention, forwards and backwards. As in heed, a
/// gradient has the type of its module.
namespace vit {

using heed::Index;
template <class Scalar>
using Tokens = heed::Tensor<Scalar, 3>;  // (images, tokens, features)

/// (images * tokens, features), without a copy.
template <class Scalar>
auto rows(Tokens<Scalar>& x) {
  return Eigen::Map<heed::Matrix<Scalar>>(x.data(), x.dimension(0) * x.dimension(1),
                                          x.dimension(2));
}
template <class Scalar>
auto rows(const Tokens<Scalar>& x) {
  return Eigen::Map<const heed::Matrix<Scalar>>(x.data(), x.dimension(0) * x.dimension(1),
                                                x.dimension(2));
}

/// The gradients that a backward pass gives.
template <class Input, class Parameters>
struct Gradients {
  Input input;
  Parameters parameters;
};

/// Xavier weights (Glorot and Bengio, 2010) and a bias of zeros.
template <class Scalar>
heed::Linear<Scalar> make_linear(Index in, Index out, Random& random) {
  const double bound = std::sqrt(6.0 / static_cast<double>(in + out));
  return {heed::Matrix<Scalar>::NullaryExpr(
              out, in, [&] { return static_cast<Scalar>(bound * (2 * random.uniform() - 1)); }),
          heed::Vector<Scalar>::Zero(out)};
}

/// Layer normalisation (Ba, Kiros and Hinton, 2016): the features of each token are brought to mean
/// 0 and variance 1, then scaled and shifted.
template <class Scalar>
struct LayerNorm {
  heed::Vector<Scalar> scale, shift;

  struct Pass {
    Tokens<Scalar> output, normalised;
    heed::Vector<Scalar> inverse_deviation;  // one for each token
  };

  Pass forward(const Tokens<Scalar>& x) const {
    Pass pass{x, x, {}};
    auto unit = rows(pass.normalised);
    unit.colwise() -= unit.rowwise().mean().eval();
    pass.inverse_deviation =
        (unit.rowwise().squaredNorm().array() / Scalar(unit.cols()) + Scalar(1e-5)).rsqrt();
    unit.array().colwise() *= pass.inverse_deviation.array();
    rows(pass.output) =
        (unit.array().rowwise() * scale.transpose().array()).rowwise() + shift.transpose().array();
    return pass;
  }

  /// The gradient by the normalised tokens loses what they cannot follow: a common shift and their
  /// own direction.
  Gradients<Tokens<Scalar>, LayerNorm> backward(const Pass& pass,
                                                const Tokens<Scalar>& grad_output) const {
    const auto unit = rows(pass.normalised), grad = rows(grad_output);
    Gradients<Tokens<Scalar>, LayerNorm> result{
        grad_output,
        {grad.cwiseProduct(unit).colwise().sum().transpose(), grad.colwise().sum().transpose()}};
    auto input = rows(result.input);
    input.array().rowwise() *= scale.transpose().array();
    const heed::Vector<Scalar> mean = input.rowwise().mean(),
                               along = input.cwiseProduct(unit).rowwise().mean();
    input.array() -= unit.array().colwise() * along.array();
    input.colwise() -= mean;
    input.array().colwise() *= pass.inverse_deviation.array();
    return result;
  }

  /// What heed::for_each_parameter goes through.
  static void members(const auto& visit, auto&... self) {
    visit("scale", self.scale...);
    visit("shift", self.shift...);
  }
};

template <class Scalar>
LayerNorm<Scalar> make_layer_norm(Index features) {
  return {heed::Vector<Scalar>::Ones(features), heed::Vector<Scalar>::Zero(features)};
}

/// Two projections with GELU between them (Hendrycks and Gimpel, 2016), in its form without the
/// error function: gelu(x) = x s, s = 1 / (1 + e^-2u) = (1 + tanh u) / 2, u = sqrt(2 / pi) (x + c
/// x^3).
template <class Scalar>
struct Mlp {
  heed::Linear<Scalar> widen, narrow;

  struct Pass {
    Tokens<Scalar> output, active, slope;  // slope: the derivative of gelu
  };

  Pass forward(const Tokens<Scalar>& x) const {
    constexpr auto root = Scalar(0.7978845608028654), c = Scalar(0.044715);
    Pass pass;
    pass.active = widen(x);
    pass.slope.resize(pass.active.dimensions());
    auto y = rows(pass.active).array();
    const auto s = ((1 + (root * y * (1 + c * y.square())).tanh()) / 2).eval();
    rows(pass.slope).array() = s + 2 * root * y * (1 + 3 * c * y.square()) * s * (1 - s);
    y *= s;
    pass.output = narrow(pass.active);
    return pass;
  }

  Gradients<Tokens<Scalar>, Mlp> backward(const Tokens<Scalar>& x, const Pass& pass,
                                          const Tokens<Scalar>& grad_output) const {
    auto second = narrow.backward(pass.active, grad_output);
    rows(second.input).array() *= rows(pass.slope).array();
    auto first = widen.backward(x, second.input);
    return {std::move(first.input), {std::move(first.parameters), std::move(second.parameters)}};
  }

  static void members(const auto& visit, auto&... self) {
    visit("widen", self.widen...);
    visit("narrow", self.narrow...);
  }
};

}  // namespace vit
