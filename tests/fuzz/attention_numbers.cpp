#include "fuzz/attention.hpp"

namespace heed::fuzz {
namespace {

template <class Element>
void attend(Draw& draw, bool backwards) {
  const Sizes s = draw_sizes(draw, true, 100000);
  Case<Element> c(draw, s);
  const auto mask = draw_mask<1>(draw, positions_of(s));
  c.attention.similarity = oracle::dot_product(s.key_dim, Real(.125));
  c.attention.allowed = mask.allowed;
  c.poison(draw);
  c.place(draw);
  const auto forward = check_forward(draw, c, dot_product(.125), mask.mask);
  if (backwards) check_backward(draw, c, dot_product(.125), mask.mask, forward);
}

}  // namespace

/// Number types beside float; long double has no vectors, and so the reference engine alone.
void attend_numbers(Draw& draw) {
  switch (draw.integer(0, 3)) {
    case 0:
      return attend<double>(draw, draw.chance(60));
    case 1:
      return attend<Eigen::half>(draw, draw.chance(40));
    case 2:
      return attend<long double>(draw, draw.chance(60));
    default:
      return attend<Eigen::bfloat16>(draw, draw.chance(40));
  }
}

}  // namespace heed::fuzz
