#pragma once

#include <type_traits>
#include <utility>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

template <class Kept, class KeptGradient = detail::NoGradient>
struct Bilinear : ScorePolicy {
  Kept matrix;
  KeptGradient gradient;

  Bilinear(Kept m, KeptGradient dm) : matrix(std::forward<Kept>(m)), gradient(dm) {}

  template <class Number, class Element, class Gradient>
  struct Similarity : detail::Product<Number> {
    static constexpr ScoreTraits traits{.vectorised = true,
                                        .features_alike = true,
                                        .terms = Terms::product,
                                        .parameters = Parameters::matrix};
    static constexpr const char* parameter_name = "the matrix of the bilinear score";
    View<const Element, 2> transform;
    Gradient gradient;
    const auto& parameters() const { return transform; }
  };
  template <class Number, class Unit = NaturalUnit>
  auto bind(const Problem& problem) const {
    const auto m = view(matrix);
    const auto dm = detail::gradient_view<2>(gradient);
    if (m.shape[0] != problem.query_dim || m.shape[1] != problem.key_dim) {
      problem.refuse("the bilinear score has a matrix of shape ", m.shape, " for ",
                     problem.query_dim, " query and ", problem.key_dim,
                     " key features (last axes); query is ", problem.query_shape(), ", key is ",
                     problem.key_shape());
    }
    return Similarity<Number, typename decltype(m)::Scalar, std::remove_const_t<decltype(dm)>>{
        {Number(Unit::factor)}, m, dm};
  }
};

/// q^T M k (Luong, Pham and Manning, "Effective approaches to attention-based neural machine
/// translation", 2015). M: (query features, key features); it must outlive the score unless it is a
/// temporary.
template <class M>
auto bilinear(M&& matrix) {
  static_assert(detail::rank_of<std::remove_reference_t<M>> == 2,
                "heed: bilinear takes a matrix of rank 2");
  return Bilinear<detail::Kept<M&&>>(std::forward<M>(matrix), {});
}
/// attention_backward adds the gradient of the matrix to dmatrix, of its shape, which outlives the
/// score or is a View.
template <class M, class Gradient>
auto bilinear(M&& matrix, Gradient&& dmatrix) {
  static_assert(detail::rank_of<std::remove_reference_t<M>> == 2,
                "heed: bilinear takes a matrix of rank 2");
  detail::check_gradient_type<Gradient&&>();
  return Bilinear<detail::Kept<M&&>, detail::KeptGradient<Gradient&&>>(std::forward<M>(matrix),
                                                                       dmatrix);
}

}  // namespace heed
