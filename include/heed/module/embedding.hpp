#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "heed/core/alias.hpp"
#include "heed/core/error.hpp"
#include "heed/core/integers.hpp"
#include "heed/core/parallel.hpp"
#include "heed/core/view.hpp"
#include "heed/kernel/along_row.hpp"
#include "heed/kernel/gemm.hpp"
#include "heed/module/initialiser.hpp"
#include "heed/module/layer.hpp"
#include "heed/module/linear.hpp"
#include "heed/module/pass.hpp"
#include "heed/operator/over_rows.hpp"

namespace heed {

/// What looking up an Embedding gives, and what backward needs: a view of the ids, which must
/// outlive the pass.
template <class Ids, class Output>
struct EmbeddingPass {
  detail::IntegerView<Ids> ids;
  Output output;
  Eigen::ThreadPoolInterface* pool = nullptr;
};

/// What its backward gives; ids have no gradient.
template <class Parameters>
struct EmbeddingGradients {
  Parameters parameters;
};

/// A vector for each of `count` tokens, and, used the other way round, a score for each token.
template <class Scalar>
struct Embedding {
  static_assert(!std::is_integral_v<Scalar>,
                "heed: the weights of a layer are real numbers, not integers");
  Matrix<Scalar> weight;  ///< (count, dim)

  Embedding() = default;
  /// Weights uniform within +-sqrt(3), of variance 1, from the seed.
  Embedding(Index count, Index dim, std::uint64_t seed = 0) {
    detail::check_extents(name, "the weight", std::array{count, dim});
    weight.resize(count, dim);
    detail::Initialiser(seed).xavier(1, 1, weight.data(), weight.size());
  }

  /// ids (n) or (batch, n), integers as std::vector, Eigen vector, matrix or tensor -> their rows,
  /// (n, dim) or (batch, n, dim). std::invalid_argument where an id is not from 0 to count - 1.
  template <detail::Integers Ids>
  auto operator()(const Ids& ids, Eigen::ThreadPoolInterface* pool = nullptr) const {
    return lookup<Scalar>(ids, pool);
  }

  /// The same as numbers of another type, such as float for weights of half or bfloat16.
  template <class Number, detail::Integers Ids>
  auto lookup(const Ids& ids, Eigen::ThreadPoolInterface* pool = nullptr) const {
    const auto rows = detail::integer_view(ids);
    check_ids(name, rows);
    auto result = detail::make_result<Number, Tensor<Number, 3>>(shape_of(rows));
    write(result, rows, pool);
    return result;
  }

  /// Writes the rows into `out`, of the shape (..., dim), which shares no elements with the weight
  /// or the ids, widened where it is wider.
  template <class Out, detail::Integers Ids>
  void into(Out&& out, const Ids& ids, Eigen::ThreadPoolInterface* pool = nullptr) const {
    const auto rows = detail::integer_view(ids);
    check_ids(name, rows);
    write(out, rows, pool);
  }

  /// The pass keeps what backward needs; the ids must outlive it.
  template <detail::Integers Ids>
  auto forward(const Ids& ids, Eigen::ThreadPoolInterface* pool = nullptr) const {
    auto output = (*this)(ids, pool);
    return EmbeddingPass<Ids, decltype(output)>{detail::integer_view(ids), std::move(output), pool};
  }
  template <class Ids>
    requires detail::TemporaryIntegers<Ids>
  void forward(Ids&&, Eigen::ThreadPoolInterface* = nullptr) const = delete;  // give them a name

  /// The gradient of the weight, in float for half and bfloat16: to each row is added what the
  /// places that looked it up have for a gradient -> {parameters}. std::invalid_argument where
  /// `grad` has not the shape of the output.
  template <class Ids, class Output, class G>
  auto backward(const EmbeddingPass<Ids, Output>& pass, const G& grad) const {
    constexpr const char* function = "Embedding::backward";
    check_ids(function, pass.ids);
    detail::check_layer_types<Scalar, G>();
    static_assert(detail::rank_of<G> == decltype(pass.ids)::Rank + 1,
                  "heed: the gradient has the rank of the output");
    detail::check_gradient_shape(function, "the output", shape_of(pass.ids), view(grad).shape);
    using Number = detail::Accumulator<Scalar>;
    Matrix<Number> sum = Matrix<Number>::Zero(weight.rows(), weight.cols());
    const auto by = detail::rank4(grad);
    const Index rows = pass.ids.size();
    // Threads share the features, as places share rows.
    constexpr Index share = 64;
    const Index width = weight.cols(), shares = (width + share - 1) / share;
    auto* const pool = by.size() < (Index(1) << 14) ? nullptr : pass.pool;
    detail::parallel_for(pool, shares, [&](Index first, Index last) {
      for (Index row = 0; row < rows; ++row) {
        Number* const to = sum.data() + id(pass.ids, row) * width;
        const auto* const from = detail::RowsOf<const typename decltype(by)::Scalar>{by}[row];
        for (Index c = first * share; c < std::min(last * share, width); ++c) {
          to[c] += static_cast<Number>(from[c * by.strides[3]]);
        }
      }
    });
    EmbeddingGradients<Embedding> result;
    result.parameters.weight = sum.template cast<Scalar>();
    return result;
  }

  /// A score for each token, x W^T, where the output layer is tied to the embedding (Press and
  /// Wolf, "Using the output embedding to improve language models", 2017): x (..., dim) of rank 2
  /// to 4 -> (..., count), of the number type and storage order of x.
  template <class X>
  auto logits(const X& x, Eigen::ThreadPoolInterface* pool = nullptr) const {
    auto shape = logits_shape("Embedding::logits", x);
    auto result = detail::make_result<detail::ScalarOf<X>, X>(shape);
    logits_into(result, x, pool);
    return result;
  }

  /// Writes them into `out`, of the shape (..., count), which shares no elements with x or the
  /// weight. A second call of one shape allocates nothing.
  template <class Out, class X>
  void logits_into(Out&& out, const X& x, Eigen::ThreadPoolInterface* pool = nullptr) const {
    constexpr const char* function = "Embedding::logits";
    detail::check_layer_types<Scalar, X, Out>();
    const auto target = detail::module_target(function, out, logits_shape(function, x));
    detail::check_not_aliased(function, target, detail::rank4(x), "x");
    detail::check_not_aliased(function, target, detail::rank4(weight), "the weight");
    const auto [from, to] = detail::rows_together(detail::rank4(x), target);
    const View<const Scalar, 4> tokens{weight.data(),
                                       {from.shape[0], from.shape[1], weight.cols(), weight.rows()},
                                       {0, 0, 1, weight.cols()}};
    detail::multiply(from, tokens, to, pool);
  }

  /// From x and the gradient of its logits: dx = grad W in the shape, number type and storage order
  /// of x, and dW = grad^T x -> {input, parameters}. A tied model adds this dW to that of backward.
  template <class X, class G>
  auto logits_backward(const X& x, const G& grad,
                       Eigen::ThreadPoolInterface* pool = nullptr) const {
    logits_shape("Embedding::logits_backward", x);
    auto of_linear = Linear<Scalar>{weight, {}}.backward(x, grad, pool);
    LayerGradients<decltype(of_linear.input), Embedding> result{std::move(of_linear.input), {}};
    result.parameters.weight = std::move(of_linear.parameters.weight);
    return result;
  }

  /// What for_each_parameter goes through.
  static void members(const auto& visit, auto&... self) { visit("weight", self.weight...); }

 private:
  static constexpr const char* name = "Embedding";

  /// The id at a place, counted through.
  template <class Integer, int Rank>
  static Index id(const View<Integer, Rank>& ids, Index place) {
    if constexpr (Rank == 1) {
      return static_cast<Index>(ids(place));
    } else {
      return static_cast<Index>(ids(place / ids.shape[1], place % ids.shape[1]));
    }
  }

  template <class Integer, int Rank>
  std::array<Index, static_cast<std::size_t>(Rank) + 1> shape_of(
      const View<Integer, Rank>& ids) const {
    std::array<Index, static_cast<std::size_t>(Rank) + 1> shape;
    std::copy(ids.shape.begin(), ids.shape.end(), shape.begin());
    shape.back() = weight.cols();
    return shape;
  }

  template <class Integer, int Rank>
  void check_ids(const char* function, const View<Integer, Rank>& ids) const {
    detail::check_extents(function, "the output", shape_of(ids));
    for (Index place = 0; place < ids.size(); ++place) {
      const Index n = id(ids, place);
      if (n >= 0 && n < weight.rows()) continue;
      if constexpr (Rank == 1) {
        detail::fail(function, "id ", n, " at ", place, " is not from 0 to ", weight.rows() - 1);
      } else {
        detail::fail(function, "id ", n, " at ",
                     std::array{place / ids.shape[1], place % ids.shape[1]}, " is not from 0 to ",
                     weight.rows() - 1);
      }
    }
  }

  template <class Out, class Ids>
  void write(Out& out, const Ids& ids, Eigen::ThreadPoolInterface* pool) const {
    detail::check_layer_types<Scalar, Out>();
    const auto target = detail::module_target(name, out, shape_of(ids));
    detail::check_not_aliased(name, target, detail::rank4(weight), "the weight");
    detail::check_not_aliased(name, target, detail::spread(ids), "the ids");
    if (target.size() == 0) return;
    using Number = detail::Accumulator<Scalar>;
    detail::over_rows<Number>(
        pool, 1,
        [&](Index row, auto* to) {
          const Scalar* const from = weight.data() + id(ids, row) * weight.cols();
          detail::along_row<Number>(weight.cols(),
                                    [&](const auto& place) __attribute__((always_inline)) {
                                      place.store(place.load(from), to);
                                    });
        },
        target);
  }

  template <class X>
  auto logits_shape(const char* function, const X& x) const {
    static_assert(detail::rank_of<X> >= 2 && detail::rank_of<X> <= 4,
                  "heed: logits are of a tensor of rank 2 to 4");
    auto shape = view(x).shape;
    detail::check_extents(function, "x", shape);
    if (shape.back() != weight.cols()) {
      detail::fail(function, "x has ", shape.back(), " features (last axis), the weight ",
                   weight.cols(), "; x is ", shape);
    }
    shape.back() = weight.rows();
    detail::check_extents(function, "the logits", shape);
    return shape;
  }
};

}  // namespace heed
