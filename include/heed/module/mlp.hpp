#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "heed/core/alias.hpp"
#include "heed/core/error.hpp"
#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/view.hpp"
#include "heed/kernel/activation.hpp"
#include "heed/kernel/epilogue.hpp"
#include "heed/module/initialiser.hpp"
#include "heed/module/layer.hpp"
#include "heed/module/linear.hpp"
#include "heed/module/pass.hpp"
#include "heed/operator/matmul.hpp"
#include "heed/operator/over_rows.hpp"
#include "heed/operator/residual.hpp"

namespace heed {

template <class Scalar>
struct TransformerBlock;

/// The widths and the kind of an Mlp.
struct MlpConfig {
  Index dim = 0;         ///< width of inputs and outputs
  Index hidden_dim = 0;  ///< width between the projections; 0: 4 dim
  Activation activation = Activation::gelu;
  bool gated = false;  ///< activation(gate x) * (up x) in place of activation(up x)
  bool bias = true;    ///< whether all projections begin with a bias
};

/// What a pass through an Mlp gives; all but the output is what backward needs. Rows of (batch,
/// heads, seq) one after the other.
template <class X, class Output>
struct MlpPass {
  using Hidden = Matrix<detail::ScalarOf<X>>;  // (rows, hidden_dim)
  detail::ViewOf<const X> input;
  Output output;
  Hidden gate, up;  ///< projections; gate is empty where there is none
  Hidden hidden;    ///< what the last projection reads
  Eigen::ThreadPoolInterface* pool = nullptr;
};

/// Two projections with an activation between them, the feed-forward network of a transformer
/// (Vaswani et al., 2017): down(activation(up x)), or gated (Shazeer, "GLU variants improve
/// transformer", 2020): down(activation(gate x) * (up x)), which with silu is SwiGLU.
template <class Scalar>
struct Mlp {
  Linear<Scalar> gate_projection;  ///< (hidden_dim, dim); empty where the Mlp is not gated
  Linear<Scalar> up_projection;    ///< (hidden_dim, dim)
  Linear<Scalar> down_projection;  ///< (dim, hidden_dim)

  Mlp() = default;
  /// Xavier weights from the seed, drawn in the order of the members; biases start at 0.
  explicit Mlp(const MlpConfig& given, std::uint64_t seed = 0) : config_(given) {
    if (config_.hidden_dim == 0) config_.hidden_dim = 4 * config_.dim;
    const auto& c = config_;
    if (c.dim < 0 || c.hidden_dim < 0) {
      detail::fail(name, "dim ", c.dim, " or hidden_dim ", c.hidden_dim, " is negative");
    }
    detail::check_extents(name, "a weight of (hidden_dim, dim)", std::array{c.hidden_dim, c.dim});
    detail::with_activation(name, c.activation, [](auto) {});
    detail::Initialiser initialiser(seed);
    if (c.gated) gate_projection = initialiser.linear<Scalar>(c.dim, c.hidden_dim, c.bias);
    up_projection = initialiser.linear<Scalar>(c.dim, c.hidden_dim, c.bias);
    down_projection = initialiser.linear<Scalar>(c.hidden_dim, c.dim, c.bias);
  }

  /// As given, with the defaults filled in.
  const MlpConfig& config() const { return config_; }

  /// x (..., dim) of rank 2 to 4 -> the same shape, number type and storage order, on the threads
  /// of the pool. Weights of half or bfloat16 take an x of float, too. std::invalid_argument where
  /// the widths do not fit, or weights that were assigned do not fit the configuration; a bias may
  /// be there or not.
  template <class X>
  auto operator()(const X& x, Eigen::ThreadPoolInterface* pool = nullptr) const {
    check(name, x);
    auto result = detail::make_result<detail::ScalarOf<X>, X>(view(x).shape);
    into(result, x, pool);
    return result;
  }

  /// Writes that into `out`, which shares no elements with x. A second call of one shape allocates
  /// nothing.
  template <class Out, class X>
  void into(Out&& out, const X& x, Eigen::ThreadPoolInterface* pool = nullptr) const {
    check(name, x);
    detail::check_layer_types<Scalar, Out>();
    const auto target = detail::module_target(name, out, view(x).shape);
    detail::check_not_aliased(name, target, detail::rank4(x), "x");
    for (const auto* projection : {&gate_projection, &up_projection, &down_projection}) {
      detail::check_not_parameters(name, target, *projection);
    }
    run<detail::ScalarOf<X>>(detail::rank4(x), target, {}, pool);
  }

  /// The pass keeps what backward needs; x must outlive it.
  template <class X>
  auto forward(const X& x, Eigen::ThreadPoolInterface* pool = nullptr) const {
    check(name, x);
    auto output = detail::make_result<detail::ScalarOf<X>, X>(view(x).shape);
    MlpPass<X, decltype(output)> pass{view(x), std::move(output), {}, {}, {}, pool};
    const Index rows = rows_of(detail::rank4(x).shape), hidden = config_.hidden_dim;
    if (config_.gated) pass.gate.resize(rows, hidden);
    pass.up.resize(rows, hidden);
    pass.hidden.resize(rows, hidden);
    run<detail::ScalarOf<X>>(detail::rank4(x), detail::rank4(pass.output),
                             {pass.gate.data(), pass.up.data(), pass.hidden.data()}, pool);
    return pass;
  }
  template <class X, class... Rest>
    requires detail::OwningTemporary<X>
  void forward(X&&, Rest&&...) const = delete;  // x would end before backward: give it a name

  /// The gradients of a number that depends on the output of a pass through this module, given its
  /// gradient by the output -> {input, parameters}; parameters is an Mlp. Runs on the threads of
  /// the pass. std::invalid_argument where grad_output has not the output's shape, or where the
  /// pass is from a module of other widths.
  template <class X, class Output, class G>
  auto backward(const MlpPass<X, Output>& pass, const G& grad_output) const {
    constexpr const char* function = "Mlp::backward";
    check(function, pass.input);
    detail::check_output_gradient(function, pass.output, grad_output);
    const auto x = detail::rank4(pass.input);
    const auto require = [&](const char* what, const auto& matrix, Index rows) {
      if (matrix.rows() != rows || matrix.cols() != (rows == 0 ? matrix.cols() : width())) {
        detail::fail(function, "the pass has a ", what, " of shape (", matrix.rows(), ", ",
                     matrix.cols(), ") where (", rows, ", ", width(),
                     ") is needed; is the pass from another module?");
      }
    };
    const Index rows = rows_of(x.shape);
    require("gate", pass.gate, config_.gated ? rows : 0);
    require("hidden layer", pass.up, rows);
    require("hidden layer", pass.hidden, rows);

    using S = detail::ScalarOf<X>;
    auto input = detail::make_result<S, X>(pass.input.shape);
    LayerGradients<decltype(input), Mlp> result{std::move(input), {}};
    auto& parameters = result.parameters;
    parameters.config_ = config_;
    auto* const pool = pass.pool;
    const auto over = [&](auto& matrix) { return hidden_view(matrix.data(), x.shape); };
    Matrix<S> grad(rows, width()), grad_gate(config_.gated ? rows : 0, width());
    down_projection.backward_into(over(grad), parameters.down_projection, over(pass.hidden),
                                  detail::rank4(grad_output), pool);
    detail::with_activation(function, config_.activation, [&](auto activation) {
      detail::over_rows<detail::Accumulator<S>>(
          pool, 1,
          [&](Index row, const auto*) {
            const Index at = row * width();
            detail::activate_backward_row<detail::Accumulator<S>>(
                activation, pass.up.data() + at, config_.gated ? pass.gate.data() + at : nullptr,
                grad.data() + at, config_.gated ? grad_gate.data() + at : nullptr, width());
          },
          over(std::as_const(grad)));
    });
    const auto to = detail::rank4(result.input);
    up_projection.backward_into(to, parameters.up_projection, x, over(grad), pool);
    if (config_.gated) {
      Tensor<S, 4> by_gate(x.shape);
      gate_projection.backward_into(by_gate, parameters.gate_projection, x, over(grad_gate), pool);
      detail::add_scaled<S, S, S, S>(to, to, view(by_gate), nullptr, pool);
    }
    return result;
  }

  /// What for_each_parameter goes through.
  static void members(const auto& visit, auto&... self) {
    visit("gate_projection", self.gate_projection...);
    visit("up_projection", self.up_projection...);
    visit("down_projection", self.down_projection...);
  }

 private:
  friend TransformerBlock<Scalar>;
  static constexpr const char* name = "Mlp";

  Index width() const { return config_.hidden_dim; }

  static Index rows_of(const std::array<Index, 4>& shape) { return shape[0] * shape[1] * shape[2]; }

  /// Rows of the hidden layer, side by side, for those of x.
  template <class S>
  View<S, 4> hidden_view(S* data, const std::array<Index, 4>& shape) const {
    const Index row = width(), head = shape[2] * row;
    return {data, {shape[0], shape[1], shape[2], row}, {shape[1] * head, head, row, 1}};
  }

  template <class X>
  void check(const char* function, const X& x) const {
    static_assert(detail::rank_of<X> >= 2 && detail::rank_of<X> <= 4,
                  "heed: an Mlp takes a tensor of rank 2 to 4");
    detail::check_layer_types<Scalar, X>();
    const auto& c = config_;
    if (c.gated) {
      detail::check_projection(function, "gate_projection", gate_projection, c.hidden_dim, c.dim);
    }
    detail::check_projection(function, "up_projection", up_projection, c.hidden_dim, c.dim);
    detail::check_projection(function, "down_projection", down_projection, c.dim, c.hidden_dim);
    auto shape = view(x).shape;
    detail::check_extents(function, "x", shape);
    if (shape.back() != c.dim) {
      detail::fail(function, "x has ", shape.back(), " features (last axis), the module a dim of ",
                   c.dim, "; x is ", shape);
    }
    shape.back() = c.hidden_dim;
    detail::check_extents(function, "the hidden layer", shape);
  }

  /// Where a whole pass is kept; nowhere, it is kept for a block of rows at a time.
  template <class S>
  struct Kept {
    S *gate = nullptr, *up = nullptr, *hidden = nullptr;
  };

  /// Block by block of rows, so that the hidden layer takes up to 8 MiB and is in a cache when it
  /// gets its biases and its activation and is read again. Blocks are of even size: no thread and
  /// no count of them makes one so small that its products would be taken in another order.
  template <class S, class Out>
  void run(const View<const S, 4>& given, const View<Out, 4>& result, const Kept<S>& kept,
           Eigen::ThreadPoolInterface* pool) const {
    using Number = detail::Accumulator<S>;
    if (given.size() == 0 || width() == 0) {
      // What is left of the sums is the last bias.
      return down_projection.into(result, hidden_view(kept.hidden, given.shape), pool);
    }
    const auto together = detail::rows_together(given, result);
    const auto& x = together.first;
    const auto& out = together.second;
    const Index rows = x.shape[2], slabs = x.shape[0] * x.shape[1],
                threads = pool ? pool->NumThreads() : 1,
                row_bytes = (config_.gated ? 2 : 1) * width() * static_cast<Index>(sizeof(S)),
                most = std::clamp<Index>((Index(8) << 20) / row_bytes, 192, 1024);
    // As many for each thread, or one that is shared by its products.
    Index blocks = (rows + most - 1) / most;
    for (const Index least : {96, 48}) {
      const Index even = (blocks + threads - 1) / threads * threads * (least == 96 ? 2 : 1);
      if (threads > 1 && rows >= even * least) {
        blocks = even;
        break;
      }
    }
    const Index items = slabs * blocks;
    // A single block is shared by its products.
    auto* const within = items == 1 ? pool : nullptr;
    detail::with_activation(name, config_.activation, [&](auto activation) {
      detail::parallel_for(pool, items, [&](Index first, Index last) {
        Kept<S> own;
        Number *up_copy = nullptr, *gate_copy = nullptr;
        const detail::Scratch scratch([&](detail::Layout& layout) {
          const Index room = kept.up ? 0 : (rows + blocks - 1) / blocks * width();
          own.up = layout.take<S>(room);
          own.gate = layout.take<S>(config_.gated ? room : 0);
          up_copy = layout.take<Number>(detail::widened_room<Number, Scalar>(width()));
          gate_copy = layout.take<Number>(detail::widened_room<Number, Scalar>(width()));
        });
        const Number* const up_bias = bias_of(up_projection, up_copy);
        const Number* const gate_bias = bias_of(gate_projection, gate_copy);
        for (Index item = first; item < last; ++item) {
          const Index slab = item / blocks, row = item % blocks * rows / blocks,
                      count = (item % blocks + 1) * rows / blocks - row,
                      at = (slab * rows + row) * width();
          S* const up = kept.up ? kept.up + at : own.up;
          S* const hidden = kept.up ? kept.hidden + at : up;
          S* const gate = !config_.gated ? nullptr : kept.up ? kept.gate + at : own.gate;
          const std::array<Index, 4> shape{1, 1, count, x.shape[3]};
          const View<const S, 4> from{detail::RowsOf<const S>{x}[slab * rows + row], shape,
                                      x.strides};
          const auto project = [&](const Linear<Scalar>& projection, S* to,
                                   const detail::Epilogue& epilogue) {
            detail::multiply(from, transposed(detail::rank4(projection.weight)),
                             hidden_view(to, shape), within, epilogue);
          };
          if (gate) project(gate_projection, gate, {});
          project(up_projection, up, [&](const detail::ProductBlock& block) {
            const auto behind = [](auto* numbers, Index offset) {
              return numbers ? numbers + offset : nullptr;
            };
            for (Index r = block.row; r < block.row + block.rows; ++r) {
              const Index start = r * width() + block.column;
              detail::activate_row<Number>(
                  activation, up + start, behind(gate, start), behind(up_bias, block.column),
                  behind(gate_bias, block.column), hidden + start, block.columns);
            }
          });
          down_projection.into(
              View<Out, 4>{detail::RowsOf<Out>{out}[slab * rows + row], shape, out.strides},
              hidden_view(hidden, shape), within);
        }
      });
    });
  }

  template <class Number>
  static const Number* bias_of(const Linear<Scalar>& projection, Number* copy) {
    const auto& bias = projection.bias;
    return bias.size() == 0 ? nullptr : detail::widened(bias.data(), bias.size(), copy);
  }

  MlpConfig config_;
};

}  // namespace heed
