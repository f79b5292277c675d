#pragma once

#include <type_traits>
#include <utility>

#include "heed/core/alias.hpp"
#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/module/layer.hpp"
#include "heed/module/pass.hpp"
#include "heed/operator/norm.hpp"

namespace heed {

template <class Scalar>
struct TransformerBlock;

namespace detail {

/// What the norms have in common. Self has a `name`, a `kind`, a `weight`, an `eps` and
/// shift(self), which points to its bias or is null.
template <class Self, class Scalar>
struct NormLayer {
  static_assert(!std::is_integral_v<Scalar>,
                "heed: the weights of a layer are real numbers, not integers");

  /// x (..., dim) of rank 2 to 4 -> the same shape, number type and storage order, on the threads
  /// of the pool. Weights of half or bfloat16 take an x of float, too. std::invalid_argument where
  /// the widths do not fit.
  template <class X>
  auto operator()(const X& x, Eigen::ThreadPoolInterface* pool = nullptr) const {
    check(Self::name, x);
    auto result = make_result<ScalarOf<X>, X>(view(x).shape);
    into(result, x, pool);
    return result;
  }

  /// Writes that into `out`, which is x itself or shares no elements with it. A second call of one
  /// shape allocates nothing.
  template <class Out, class X>
  void into(Out&& out, const X& x, Eigen::ThreadPoolInterface* pool = nullptr) const {
    check(Self::name, x);
    check_layer_types<Scalar, Out>();
    const auto target = module_target(Self::name, out, view(x).shape);
    const auto from = rank4(x);
    if (!same_elements(target, from)) check_not_aliased(Self::name, target, from, "x");
    check_not_parameters(Self::name, target, "the output");
    normalise<std::remove_pointer_t<decltype(target.data)>, ScalarOf<X>>(
        Self::name, self().kind, target, from, self().weight.data(), bias(self()), self().eps,
        pool);
  }

  /// The pass keeps what backward needs; x must outlive it.
  template <class X>
  auto forward(const X& x, Eigen::ThreadPoolInterface* pool = nullptr) const {
    auto output = (*this)(x, pool);
    return LayerPass<X, decltype(output)>{view(x), std::move(output), pool};
  }
  template <class X, class... Rest>
    requires detail::OwningTemporary<X>
  void forward(X&&, Rest&&...) const = delete;  // x would end before backward: give it a name

  /// The gradients of a number that depends on the result, given its gradient by the result ->
  /// {input, parameters}; parameters is a module. A row whose gradient is 0 throughout adds nothing
  /// and gets 0, even where its x is NaN. std::invalid_argument where grad has not the shape of
  /// the result.
  template <class X, class Output, class G>
  auto backward(const LayerPass<X, Output>& pass, const G& grad) const {
    auto input = make_result<ScalarOf<X>, X>(pass.input.shape);
    LayerGradients<decltype(input), Self> result{std::move(input), {}};
    backward_into(result.input, result.parameters, pass.input, grad, pass.pool);
    return result;
  }

  /// Writes the gradients of x, into a tensor or View of its shape, and of the parameters; it
  /// shares no elements with x, grad or the parameters.
  template <class GradX, class X, class G>
  void backward_into(GradX&& grad_x, Self& parameters, const X& x, const G& grad,
                     Eigen::ThreadPoolInterface* pool = nullptr) const {
    check(Self::name, x);
    static_assert(rank_of<G> == rank_of<X>, "heed: the gradient has the rank of the input");
    check_layer_types<Scalar, G, GradX>();
    check_gradient_shape(Self::name, "the output", view(x).shape, view(grad).shape);
    const auto to = module_target(Self::name, grad_x, view(x).shape);
    const auto from = rank4(x);
    const auto by = rank4(grad);
    check_not_aliased(Self::name, to, from, "x", "the gradient of x");
    check_not_aliased(Self::name, to, by, "the gradient of the output", "the gradient of x");
    check_not_parameters(Self::name, to, "the gradient of x");
    if (&parameters == &self()) fail(Self::name, "the gradients are the parameters themselves");
    parameters = self();  // in the shapes of these, to be overwritten
    normalise_backward<std::remove_pointer_t<decltype(to.data)>, ScalarOf<X>, ScalarOf<G>>(
        Self::name, self().kind, to, parameters.weight.data(), bias(parameters), from, by,
        self().weight.data(), self().eps, pool);
  }

 private:
  friend TransformerBlock<Scalar>;
  const Self& self() const { return static_cast<const Self&>(*this); }

  /// Null where there is none.
  static auto bias(auto& norm) -> decltype(norm.weight.data()) {
    if constexpr (requires { norm.bias; }) {
      return norm.bias.size() > 0 ? norm.bias.data() : nullptr;
    } else {
      return nullptr;
    }
  }

  template <class X>
  void check(const char* function, const X& x) const {
    static_assert(rank_of<X> >= 2 && rank_of<X> <= 4, "heed: a norm takes a tensor of rank 2 to 4");
    check_layer_types<Scalar, X>();
    const auto shape = view(x).shape;
    check_extents(function, "x", shape);
    const Index width = self().weight.size();
    if (shape.back() != width) {
      fail(function, "x has ", shape.back(), " features (last axis), the weight ", width, "; x is ",
           shape);
    }
    if constexpr (requires { self().bias; }) {
      if (self().bias.size() != 0 && self().bias.size() != width) {
        fail(function, "the bias has ", self().bias.size(), " entries, the weight ", width);
      }
    }
    if (!(self().eps >= 0)) fail(function, "eps is ", self().eps);
  }

  template <class Out>
  void check_not_parameters(const char* function, const View<Out, 4>& out, const char* name) const {
    check_not_aliased(function, out, rank4(self().weight), "the weight", name);
    if constexpr (requires { self().bias; }) {
      check_not_aliased(function, out, rank4(self().bias), "the bias", name);
    }
  }
};

}  // namespace detail

/// y = (x - mean) / sqrt(variance + eps) weight + bias over the last axis (Ba, Kiros and Hinton,
/// "Layer normalization", 2016). The bias may be left out.
template <class Scalar>
struct LayerNorm : detail::NormLayer<LayerNorm<Scalar>, Scalar> {
  static constexpr const char* name = "LayerNorm";
  static constexpr Norm kind = Norm::layer;

  Vector<Scalar> weight;  ///< (dim)
  Vector<Scalar> bias;    ///< (dim), or empty: none
  double eps = 1e-5;      ///< added to the variance, a mean of squares

  LayerNorm() = default;
  /// A weight of ones, a bias of zeros.
  explicit LayerNorm(Index dim, double epsilon = 1e-5)
      : weight(detail::filled<Scalar>(name, dim, 1)),
        bias(detail::filled<Scalar>(name, dim, 0)),
        eps(epsilon) {}

  /// What for_each_parameter goes through.
  static void members(const auto& visit, auto&... self) {
    visit("weight", self.weight...);
    visit("bias", self.bias...);
  }
};

/// y = x / sqrt(mean of x^2 + eps) weight over the last axis (Zhang and Sennrich, "Root mean square
/// layer normalization", 2019).
template <class Scalar>
struct RmsNorm : detail::NormLayer<RmsNorm<Scalar>, Scalar> {
  static constexpr const char* name = "RmsNorm";
  static constexpr Norm kind = Norm::rms;

  Vector<Scalar> weight;  ///< (dim)
  double eps = 1e-6;      ///< added to the mean of squares

  RmsNorm() = default;
  /// A weight of ones.
  explicit RmsNorm(Index dim, double epsilon = 1e-6)
      : weight(detail::filled<Scalar>(name, dim, 1)), eps(epsilon) {}

  /// What for_each_parameter goes through.
  static void members(const auto& visit, auto&... self) { visit("weight", self.weight...); }
};

/// LayerNorm or RmsNorm, chosen at run time.
template <class Scalar>
struct AnyNorm : detail::NormLayer<AnyNorm<Scalar>, Scalar> {
  static constexpr const char* name = "AnyNorm";

  Norm kind = Norm::layer;
  Vector<Scalar> weight;  ///< (dim)
  Vector<Scalar> bias;    ///< (dim), or empty: none, as in an RmsNorm
  double eps = 1e-5;

  AnyNorm() = default;
  /// epsilon 0: the default of the kind.
  AnyNorm(Norm given, Index dim, double epsilon = 0) {
    if (given == Norm::layer) {
      *this = epsilon == 0 ? LayerNorm<Scalar>(dim) : LayerNorm<Scalar>(dim, epsilon);
    } else {
      *this = epsilon == 0 ? RmsNorm<Scalar>(dim) : RmsNorm<Scalar>(dim, epsilon);
    }
  }
  AnyNorm(LayerNorm<Scalar> norm)
      : weight(std::move(norm.weight)), bias(std::move(norm.bias)), eps(norm.eps) {}
  AnyNorm(RmsNorm<Scalar> norm) : kind(Norm::rms), weight(std::move(norm.weight)), eps(norm.eps) {}

  /// What for_each_parameter goes through.
  static void members(const auto& visit, auto&... self) {
    visit("weight", self.weight...);
    visit("bias", self.bias...);
  }
};

}  // namespace heed
