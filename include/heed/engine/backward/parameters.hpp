#pragma once

#include <cstddef>
#include <tuple>
#include <type_traits>

#include "heed/kernel/outer_product.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"

namespace heed::detail {

/// Gradients of parameters that many scores share: every piece of work adds up count() numbers of
/// its own, first the similarity's, then for each modifier the slope of each head, and add() adds
/// them to the gradients in the order of the pieces. Gradients of biases have a number for every
/// score and are added to directly.
template <class Accumulator, class Score>
class ParameterGradients {
  using Similarity = typename Score::Similarity;
  using Modifiers = decltype(Score::modifiers);

 public:
  ParameterGradients(const Problem& problem, const Score& score) : p_(problem), score_(score) {}

  Index count() const {
    return similarity_count() +
           (any_trained<Modifiers> ? static_cast<Index>(std::tuple_size_v<Modifiers>) * p_.heads
                                   : 0);
  }

  /// Where the slope of modifier m is for a head.
  Index slope(std::size_t m, Index head) const {
    return similarity_count() + static_cast<Index>(m) * p_.heads + head;
  }

  /// Axes over which a trained bias repeats: all of such an axis adds to the same numbers.
  struct Axes {
    bool batch = false, head = false, query = false;
  };
  Axes shared_by_bias() const {
    Axes shared;
    const auto look = [&](const auto& modifier) {
      if constexpr (Trained<std::remove_cvref_t<decltype(modifier)>> &&
                    requires { modifier.added; }) {
        const auto& shape = modifier.gradient.shape;
        shared.batch = shared.batch || (shape[0] == 1 && p_.batch > 1);
        shared.head = shared.head || (shape[1] == 1 && p_.kv_heads > 1);
        shared.query = shared.query || (shape[2] == 1 && p_.queries > 1);
      }
    };
    std::apply([&](const auto&... modifier) { (look(modifier), ...); }, score_.modifiers);
    return shared;
  }

  /// Adds what the pieces of work added up, count() numbers each.
  void add(const Accumulator* parts, Index pieces) const {
    const auto add_to = [&](auto& gradient, Index number) {
      Accumulator sum = 0;
      for (Index piece = 0; piece < pieces; ++piece) sum += parts[piece * count() + number];
      using Number = std::remove_reference_t<decltype(gradient)>;
      gradient = static_cast<Number>(static_cast<Accumulator>(gradient) + sum);
    };
    if constexpr (Trained<Similarity>) {
      const auto& gradient = score_.similarity.gradient;
      if constexpr (Transforms<Similarity>) {
        for (Index r = 0; r < p_.query_dim; ++r) {
          for (Index c = 0; c < p_.key_dim; ++c) {
            add_to(gradient(r, c), feature_offset<Panels<Accumulator>, Accumulator>(
                                       p_.key_dim, p_.query_dim, r, c));
          }
        }
      } else {
        for (Index n = 0; n < gradient.shape[0]; ++n) add_to(gradient(n), n);
      }
    }
    std::size_t m = 0;
    const auto add_slopes = [&](const auto& modifier) {
      if constexpr (Trained<std::remove_cvref_t<decltype(modifier)>> &&
                    !requires { modifier.added; }) {
        for (Index h = 0; h < p_.heads; ++h) add_to(modifier.gradient(h), slope(m, h));
      }
      ++m;
    };
    std::apply([&](const auto&... modifier) { (add_slopes(modifier), ...); }, score_.modifiers);
  }

 private:
  /// A matrix has lanes over key features.
  Index similarity_count() const {
    if constexpr (!Trained<Similarity>) return 0;
    const Index width = padded<Accumulator>(p_.key_dim);
    return Transforms<Similarity> ? p_.query_dim * width : ByFeature<Similarity> ? width : 1;
  }

  const Problem& p_;
  const Score& score_;
};

}  // namespace heed::detail
