#include "fuzz/attention.hpp"

namespace heed::fuzz {

/// The dot product, which everybody uses, under masks of one range for each query.
void attend_plain(Draw& draw) {
  const Sizes s = draw_sizes(draw);
  Case<float> c(draw, s);
  const auto mask = draw_mask<1>(draw, positions_of(s));
  const double scale = draw.chance(70) ? 0.125 : draw.one_of({0., -1., 2.5});
  c.attention.similarity = oracle::dot_product(s.key_dim, static_cast<Real>(scale));
  c.attention.allowed = mask.allowed;
  c.poison(draw);
  c.place(draw);
  const auto score = dot_product(scale);
  const auto forward = check_forward(draw, c, score, mask.mask);
  if (draw.chance(60)) check_backward(draw, c, score, mask.mask, forward);
}

}  // namespace heed::fuzz
