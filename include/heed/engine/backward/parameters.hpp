#pragma once

#include <array>
#include <cstddef>
#include <tuple>
#include <utility>

#include "heed/kernel/pack.hpp"
#include "heed/kernel/panels.hpp"
#include "heed/policy/contract.hpp"

namespace heed::detail {

/// Gradients of parameters that many scores share: every piece of work adds up count() numbers of
/// its own, first the similarity's, then each modifier's, and add() adds them to the gradients in
/// the order of the pieces. A gradient with a number for every score, as that of a bias, is added
/// to directly.
template <class Number, class Score>
class ParameterGradients {
  using Similarity = typename Score::Similarity;
  using Modifiers = typename Score::Modifiers;
  static constexpr std::size_t modifiers = std::tuple_size_v<Modifiers>;

 public:
  ParameterGradients(const Problem& problem, const Score& score) : p_(problem), score_(score) {
    count_ = similarity_count();
    for_each_trained([this](std::size_t m, const auto& modifier) {
      offsets_[m] = count_;
      count_ += modifier.partials();
    });
  }

  Index count() const { return count_; }

  /// Where the numbers of modifier m begin.
  Index offset(std::size_t m) const { return offsets_[m]; }

  /// Axes of the scores along which gradients are added to directly and meet the same numbers: one
  /// piece of work at a time goes along them.
  ScoreAxes shared_axes() const {
    ScoreAxes shared;
    for_each_trained([&](std::size_t, const auto& modifier) {
      const ScoreAxes axes = modifier.shared_axes(p_);
      shared.batch = shared.batch || axes.batch;
      shared.head = shared.head || axes.head;
      shared.query = shared.query || axes.query;
    });
    return shared;
  }

  /// Adds what the pieces of work added up, count() numbers each.
  void add(const Number* parts, Index pieces) const {
    const auto total = [&](Index number) {
      Number sum(0);
      for (Index piece = 0; piece < pieces; ++piece) sum += parts[piece * count_ + number];
      return sum;
    };
    if constexpr (trained<Similarity>) {
      const auto& gradient = score_.similarity.gradient;
      if constexpr (transforms<Similarity>) {
        for (Index r = 0; r < p_.query_dim; ++r) {
          for (Index c = 0; c < p_.key_dim; ++c) {
            add_to(gradient(r, c), total(feature_offset<FeaturePanels<Number>, Number>(
                                       p_.key_dim, p_.query_dim, r, c)));
          }
        }
      } else {
        for (Index n = 0; n < gradient.shape[0]; ++n) add_to(gradient(n), total(n));
      }
    }
    for_each_trained([&](std::size_t m, const auto& modifier) {
      for (Index n = 0; n < modifier.partials(); ++n) {
        modifier.add_partial(n, total(offsets_[m] + n));
      }
    });
  }

 private:
  /// body(m, modifier) for the modifiers whose parameters are trained.
  void for_each_trained(const auto& body) const {
    [&]<std::size_t... m>(std::index_sequence<m...>) {
      [[maybe_unused]] const auto one = [&]<std::size_t n>() {
        if constexpr (trained<std::tuple_element_t<n, Modifiers>>) {
          body(n, std::get<n>(score_.modifiers));
        }
      };
      (one.template operator()<m>(), ...);
    }(std::make_index_sequence<modifiers>());
  }

  /// A matrix has lanes over key features.
  Index similarity_count() const {
    if constexpr (!trained<Similarity>) return 0;
    const Index width = padded<Number>(p_.key_dim);
    if (transforms<Similarity>) return p_.query_dim * width;
    return score_traits<Similarity>.parameters == Parameters::per_feature ? width : 1;
  }

  const Problem& p_;
  const Score& score_;
  Index count_ = 0;
  std::array<Index, modifiers + 1> offsets_{};
};

}  // namespace heed::detail
