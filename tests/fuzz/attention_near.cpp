#include "fuzz/attention.hpp"
#include "heed/score.hpp"

namespace heed::fuzz {
namespace {

template <class Score>
void attend(Draw& draw, Case<float>& c, const MaskDraw<1>& mask, const Score& score) {
  c.attention.allowed = mask.allowed;
  c.poison(draw);
  c.place(draw);
  const auto forward = check_forward(draw, c, score, mask.mask);
  if (draw.chance(60)) check_backward(draw, c, score, mask.mask, forward);
}

}  // namespace

void attend_near(Draw& draw) {
  const Sizes s = draw_sizes(draw, true, 100000);
  Case<float> c(draw, s);
  const auto mask = draw_mask<1>(draw, positions_of(s));
  const double radius = draw.one_of({.3, 1., 3., 10.});
  const Real r = static_cast<Real>(radius);
  switch (draw.integer(0, 2)) {
    case 0: {
      const auto widths = draw_vector(draw, s.key_dim, 1);
      Vector<double> d_widths = Vector<double>::Zero(s.key_dim);
      c.attention.similarity = oracle::gaussian(reals(widths));
      c.attention.parameters = static_cast<std::size_t>(s.key_dim);
      c.attention.allowed = mask.allowed;
      c.poison(draw);
      c.place(draw);
      const auto score = gaussian(widths, d_widths);
      const auto forward = check_forward(draw, c, score, mask.mask);
      const auto g = check_backward(draw, c, score, mask.mask, forward);
      if (known<float>(forward)) {
        compare_parameters("the gradient of width", d_widths.data(), g.parameters,
                           g.parameters_magnitude, Tolerance<float>(s));
      }
      break;
    }
    case 1:
      c.attention.similarity = oracle::within(s.key_dim, r, true, Real(sum_epsilon<float>()));
      attend(draw, c, mask, triangular(radius));
      break;
    default:
      c.attention.similarity = oracle::within(s.key_dim, r, false, Real(sum_epsilon<float>()));
      attend(draw, c, mask, boxcar(radius));
  }
}

}  // namespace heed::fuzz
