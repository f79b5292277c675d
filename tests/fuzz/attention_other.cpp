#include "fuzz/attention.hpp"
#include "heed/score.hpp"

namespace heed::fuzz {
namespace {

void with_weights(Draw& draw) {
  const Sizes s = draw_sizes(draw, true, 100000);
  Case<float> c(draw, s);
  const auto mask = draw_mask<1>(draw, positions_of(s));
  const auto w = draw_vector(draw, s.key_dim, draw.one_of({.5, 2.}));
  Vector<double> dw = Vector<double>::Zero(s.key_dim);
  c.attention.similarity = oracle::additive(reals(w));
  c.attention.parameters = static_cast<std::size_t>(s.key_dim);
  c.attention.allowed = mask.allowed;
  c.poison(draw);
  c.place(draw);
  const auto score = additive(w, dw);
  const auto forward = check_forward(draw, c, score, mask.mask);
  if (!draw.chance(60)) return;
  const auto g = check_backward(draw, c, score, mask.mask, forward);
  if (known<float>(forward)) {
    compare_parameters("the gradient of weight", dw.data(), g.parameters, g.parameters_magnitude,
                       Tolerance<float>(s));
  }
}

void with_matrix(Draw& draw) {
  const Sizes s = draw_sizes(draw, false, 60000);
  Case<float> c(draw, s);
  const auto mask = draw_mask<1>(draw, positions_of(s));
  Matrix<double> m(s.query_dim, s.key_dim);
  for (Index n = 0; n < m.size(); ++n) m.data()[n] = draw.number() / 4;
  Matrix<double> dm = Matrix<double>::Zero(s.query_dim, s.key_dim);
  const std::vector<Real> numbers(m.data(), m.data() + m.size());
  c.attention.similarity = oracle::bilinear(numbers, s.query_dim, s.key_dim);
  c.attention.parameters = numbers.size();
  c.attention.allowed = mask.allowed;
  c.poison(draw);
  c.place(draw);
  const auto score = bilinear(m, dm);
  const auto forward = check_forward(draw, c, score, mask.mask);
  if (!draw.chance(40)) return;
  const auto g = check_backward(draw, c, score, mask.mask, forward);
  if (known<float>(forward)) {
    compare_parameters("the gradient of the matrix", dm.data(), g.parameters,
                       g.parameters_magnitude, Tolerance<float>(s));
  }
}

void with_lambda(Draw& draw) {
  const Sizes s = draw_sizes(draw, true, 100000);
  Case<float> c(draw, s);
  const auto mask = draw_mask<1>(draw, positions_of(s));
  c.attention.similarity = oracle::pairwise(
      s.key_dim, [](Real q, Real k) { return -std::sqrt(1 + (q - k) * (q - k)) + q * k / 4; },
      [](Real q, Real k) {
        const Real slope = (q - k) / std::sqrt(1 + (q - k) * (q - k));
        return std::array<Real, 2>{-slope + k / 4, slope + q / 4};
      });
  c.attention.allowed = mask.allowed;
  c.poison(draw);
  c.place(draw);
  const auto score = pairwise([](auto q, auto k) {
    using std::sqrt;
    const auto d = q - k;
    return q * k * .25F - sqrt(d * d + 1.F);
  });
  const auto forward = check_forward(draw, c, score, mask.mask);
  if (draw.chance(60)) check_backward(draw, c, score, mask.mask, forward);
}

}  // namespace

void attend_other(Draw& draw) {
  switch (draw.integer(0, 2)) {
    case 0:
      return with_weights(draw);
    case 1:
      return with_matrix(draw);
    default:
      return with_lambda(draw);
  }
}

}  // namespace heed::fuzz
