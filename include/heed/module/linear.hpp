#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>

#include "heed/core/alias.hpp"
#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/kernel/epilogue.hpp"
#include "heed/kernel/gemm.hpp"
#include "heed/kernel/right_factor.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/operator/matmul.hpp"
#include "heed/operator/over_rows.hpp"
#include "heed/simd/convert.hpp"
#include "heed/simd/lanes.hpp"

namespace heed {

/// What Linear's backward gives; the parameters' gradients are a Linear.
template <class Input, class Parameters>
struct LinearGradients {
  Input input;
  Parameters parameters;
};

/// y = x W^T + b over the last axis. Weights of half or bfloat16 take an x of float, and of one
/// another; the result is of the type of x, sums are of float, and few rows of x read such weights
/// once, widened in registers.
template <class Scalar>
struct Linear {
  static_assert(!std::is_integral_v<Scalar>,
                "heed: the weights of a layer are real numbers, not integers");
  Matrix<Scalar> weight;  ///< (out, in)
  Vector<Scalar> bias;    ///< (out), or empty: none

  Index in_features() const { return weight.cols(); }
  Index out_features() const { return weight.rows(); }

  /// x (..., in) of rank 2 to 4 -> (..., out), of the number type and storage order of x.
  /// std::invalid_argument where the widths do not fit.
  template <class X>
  auto operator()(const X& x, Eigen::ThreadPoolInterface* pool = nullptr) const {
    static_assert(detail::rank_of<X> >= 2 && detail::rank_of<X> <= 4,
                  "heed: Linear takes a tensor of rank 2 to 4");
    auto shape = view(x).shape;
    shape.back() = out_features();
    check("Linear", view(x).shape);
    auto result = detail::make_result<detail::ScalarOf<X>, X>(shape);
    into(result, x, pool);
    return result;
  }

  /// Writes y into out, of the shape (..., out), which shares no elements with x or the parameters,
  /// on the threads of the pool.
  template <class Out, class X>
  void into(Out&& out, const X& x, Eigen::ThreadPoolInterface* pool = nullptr) const {
    const auto y = view(out);
    into_each(
        std::array{Target<std::remove_pointer_t<decltype(y.data)>, decltype(y)::Rank>{*this, y}}, x,
        pool);
  }

  /// A Linear, and where its y goes.
  template <class Out, int Rank>
  struct Target {
    const Linear& linear;
    View<Out, Rank> out;

    template <std::size_t N, class X>
    void check(const std::array<Target, N>& all, const X& x) const {
      linear.check("Linear", view(x).shape);
      auto expected = view(x).shape;
      expected.back() = linear.out_features();
      if (out.shape != expected) {
        detail::fail("Linear", "the output has shape ", out.shape, ", but Linear gives ", expected);
      }
      const auto to = detail::rank4(out);
      detail::check_writable("Linear", to, "the output");
      detail::check_not_aliased("Linear", to, detail::rank4(x), "x");
      for (const Target& other : all) {
        other.linear.check_not_parameters("Linear", to, "the output");
        if (&other == this) continue;
        detail::check_not_aliased("Linear", to, detail::rank4(other.out), "another output");
      }
    }
  };

  /// Writes what each of several Linears gives for one x, as queries, keys and values are, in less
  /// time than one after the other: the rows of x are read and packed once, and threads share the
  /// outputs of all. No output shares elements with x, with a parameter or with another one; all is
  /// checked before anything is written.
  template <class Out, int Rank, std::size_t N, class X>
  static void into_each(const std::array<Target<Out, Rank>, N>& targets, const X& x,
                        Eigen::ThreadPoolInterface* pool = nullptr) {
    static_assert(!std::is_const_v<Out>, "heed: the output cannot be written to");
    static_assert(Rank == detail::rank_of<X>,
                  "heed: the output of a Linear has the rank of its input");
    detail::check_not_integers<X, View<Out, Rank>>();
    static_assert(
        std::is_same_v<Accumulate, detail::Accumulator<detail::ScalarOf<X>>>,
        "heed: Linear and its input are of one number type (half, bfloat16 and float mix)");
    for (const auto& target : targets) target.check(targets, x);
    using Factor = detail::RightFactor<Scalar, Out>;
    std::array<AddBias<Out>, N> biases;
    std::array<Factor, N> factors;
    auto from = detail::rank4(x);
    bool together = true;
    for (std::size_t n = 0; n < N; ++n) {
      const auto [rows, y] = detail::rows_together(detail::rank4(x), detail::rank4(targets[n].out));
      const Linear& linear = targets[n].linear;
      biases[n] = {&linear, y};
      factors[n] = {transposed(over(linear.weight, rows)), y, biases[n]};
      together = n == 0 || (together && from.shape == rows.shape);
      from = rows;
    }
    if constexpr (N > 1) {
      if (!together) {
        for (const auto& target : targets) into_each(std::array{target}, x, pool);
        return;
      }
    }
    detail::multiply(from, std::span<const Factor>(factors), pool);
  }

  /// -> {input, parameters} from the input x and the gradient of y: dx = dy W in the shape, number
  /// type and storage order of x, dW = dy^T x and db = the sum of dy over all rows, which are
  /// summed in float and then rounded to the type of the weights. A row of dy
  /// that is 0 throughout adds nothing to dW, even where its x is NaN. std::invalid_argument where
  /// the shapes do not fit.
  template <class X, class G>
  auto backward(const X& x, const G& grad_y, Eigen::ThreadPoolInterface* pool = nullptr) const {
    check("Linear::backward", view(x).shape);
    auto input = detail::make_result<detail::ScalarOf<X>, X>(view(x).shape);
    LinearGradients<decltype(input), Linear> result{std::move(input), {}};
    backward_into(result.input, result.parameters, x, grad_y, pool);
    return result;
  }

  /// Writes the gradients of x, into a tensor or View of its shape, and of the parameters. Neither
  /// shares elements with the other, with x, grad_y or this Linear's parameters.
  template <class GradX, class X, class G>
  void backward_into(GradX&& grad_x, Linear& parameters, const X& x, const G& grad_y,
                     Eigen::ThreadPoolInterface* pool = nullptr) const {
    static_assert(detail::rank_of<X> == detail::rank_of<G>,
                  "heed: the gradient of a Linear has the rank of its input");
    static_assert(std::is_same_v<Accumulate, detail::Accumulator<detail::ScalarOf<X>>> &&
                      std::is_same_v<Accumulate, detail::Accumulator<detail::ScalarOf<G>>>,
                  "heed: Linear, its input and its gradient are of one number type (half, bfloat16 "
                  "and float mix)");
    detail::check_not_integers<std::remove_cvref_t<GradX>, X, G>();
    constexpr const char* function = "Linear::backward";
    check(function, view(x).shape);
    auto expected = view(x).shape;
    expected.back() = out_features();
    detail::check_gradient_shape(function, "the output", expected, view(grad_y).shape);
    detail::check_gradient_shape(function, "x", view(x).shape, view(grad_x).shape);
    const auto to = detail::rank4(grad_x);
    detail::check_writable(function, to, "the gradient of x");
    const auto check_apart = [&](const auto& target, const char* name) {
      detail::check_not_aliased(function, target, detail::rank4(x), "x", name);
      detail::check_not_aliased(function, target, detail::rank4(grad_y), "the gradient of y", name);
      check_not_parameters(function, target, name);
    };
    check_apart(to, "the gradient of x");
    check_apart(detail::rank4(parameters.weight), "the gradient of the weight");
    check_apart(detail::rank4(parameters.bias), "the gradient of the bias");
    parameters.check_not_parameters(function, to, "the gradient of x");
    const auto [dy, dx] = detail::rows_together(detail::rank4(grad_y), to);
    detail::multiply(dy, over(weight, dy), dx, pool);
    parameters.weight.resize(out_features(), in_features());
    grad_weight(parameters.weight, detail::rank4(x), detail::rank4(grad_y), pool);
    parameters.bias.resize(bias.size());
    if (bias.size() > 0) grad_bias(parameters.bias, detail::rank4(grad_y));
  }

  /// What for_each_parameter goes through.
  static void members(const auto& visit, auto&... self) {
    visit("weight", self.weight...);
    visit("bias", self.bias...);
  }

 private:
  template <std::size_t Rank>
  void check(const char* function, const std::array<Index, Rank>& shape) const {
    detail::check_extents(function, "x", shape);
    auto product = shape;
    product.back() = out_features();
    detail::check_extents(function, "the output", product);
    if (shape.back() != in_features()) {
      detail::fail(function, "x has ", shape.back(), " features (last axis) for ", in_features(),
                   " inputs; x is ", shape, ", the weight (", out_features(), ", ", in_features(),
                   ")");
    }
    if (bias.size() != 0 && bias.size() != out_features()) {
      detail::fail(function, "the bias has ", bias.size(), " entries for ", out_features(),
                   " outputs");
    }
  }

  template <class Out>
  void check_not_parameters(const char* function, const View<Out, 4>& out, const char* name) const {
    detail::check_not_aliased(function, out, detail::rank4(weight), "the weight", name);
    detail::check_not_aliased(function, out, detail::rank4(bias), "the bias", name);
  }

  using Accumulate = detail::Accumulator<Scalar>;

  /// What is done with blocks of y.
  template <class Out>
  struct AddBias {
    const Linear* linear;
    View<Out, 4> y;

    void operator()(const detail::ProductBlock& block) const {
      if (linear->bias.size() == 0) return;
      for (Index row = block.row; row < block.row + block.rows; ++row) {
        linear->add_bias(&y(block.batch, block.head, row, 0), y.strides[3], block.column,
                         block.column + block.columns);
      }
    }
  };

  /// To numbers c .. end-1 of a row of y.
  template <class Out>
  void add_bias(Out* y, Index stride, Index c, Index end) const {
    if constexpr (detail::Laned<Accumulate>) {
      using L = detail::Lanes<Accumulate>;
      for (; stride == 1 && c + L::size <= end; c += L::size) {
        detail::store_narrowed(detail::load_widened<Accumulate>(y + c) +
                                   detail::load_widened<Accumulate>(bias.data() + c),
                               y + c);
      }
    }
    for (; c < end; ++c) {
      Out& to = y[c * stride];
      to = static_cast<Out>(static_cast<Accumulate>(to) + static_cast<Accumulate>(bias(c)));
    }
  }

  /// The matrix for each (batch, head) of x.
  template <class M, class Element>
  static View<const Scalar, 4> over(const M& matrix, const View<Element, 4>& x) {
    return {matrix.data(),
            {x.shape[0], x.shape[1], matrix.rows(), matrix.cols()},
            {0, 0, matrix.cols(), 1}};
  }

  /// dW = dy^T x, summed over batch and heads.
  template <class X, class G>
  static void grad_weight(Matrix<Scalar>& to, const View<X, 4>& given, const View<G, 4>& grad_y,
                          Eigen::ThreadPoolInterface* pool) {
    using Input = std::remove_const_t<X>;
    Tensor<Input, 4> visible;
    View<const Input, 4> every = given;
    if (!all_finite(given)) {
      visible = without_rows_of_no_gradient(given, grad_y);
      every = view(visible);
    }
    const auto [x, dy] = detail::rows_together(every, grad_y);
    if (x.shape[0] == 1 && x.shape[1] == 1) {
      return detail::multiply(transposed(dy), x, detail::rank4(to), pool);
    }
    Matrix<Accumulate> sum = Matrix<Accumulate>::Zero(to.rows(), to.cols()), part = sum;
    for (Index b = 0; b < x.shape[0]; ++b) {
      for (Index h = 0; h < x.shape[1]; ++h) {
        const auto one = [b, h](auto all) {
          all.data += b * all.strides[0] + h * all.strides[1];
          all.shape[0] = all.shape[1] = 1;
          return all;
        };
        detail::multiply(transposed(one(dy)), one(x), detail::rank4(part), pool);
        sum += part;
      }
    }
    to = sum.template cast<Scalar>();
  }

  template <class G>
  static void grad_bias(Vector<Scalar>& to, const View<G, 4>& dy) {
    Vector<Accumulate> sum = Vector<Accumulate>::Zero(to.size());
    detail::for_each_row(dy.shape, [&](Index b, Index h, Index i) {
      using Row = Vector<std::remove_const_t<G>>;
      sum += Eigen::Map<const Row, 0, Eigen::InnerStride<>>(&dy(b, h, i, 0), to.size(),
                                                            Eigen::InnerStride<>(dy.strides[3]))
                 .template cast<Accumulate>();
    });
    to = sum.template cast<Scalar>();
  }

  template <class X>
  static bool all_finite(const View<X, 4>& x) {
    bool finite = true;
    if (x.size() == 0) return finite;
    detail::for_each_row(x.shape, [&](Index b, Index h, Index i) {
      if constexpr (detail::Laned<std::remove_const_t<X>>) {
        if (x.strides[3] == 1) {
          finite = finite && detail::all_finite(&x(b, h, i, 0), x.shape[3]);
          return;
        }
      }
      for (Index c = 0; c < x.shape[3]; ++c) {
        const auto value = static_cast<Accumulate>(x(b, h, i, c));
        finite = finite && value - value == Accumulate(0.0);
      }
    });
    return finite;
  }

  /// x with zeros for the rows whose gradient is 0 throughout: what a mask hides may be NaN, and 0
  /// times NaN is NaN.
  template <class X, class G>
  static auto without_rows_of_no_gradient(const View<X, 4>& x, const View<G, 4>& dy) {
    Tensor<std::remove_const_t<X>, 4> result(x.shape);
    result.setZero();
    detail::for_each_row(x.shape, [&](Index b, Index h, Index i) {
      bool any = false;
      for (Index c = 0; c < dy.shape[3]; ++c) {
        any = any || static_cast<Accumulate>(dy(b, h, i, c)) != Accumulate(0.0);
      }
      for (Index c = 0; any && c < x.shape[3]; ++c) result(b, h, i, c) = x(b, h, i, c);
    });
    return result;
  }
};

}  // namespace heed
