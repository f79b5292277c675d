#include "fuzz/attention.hpp"
#include "heed/rotary.hpp"

namespace heed::fuzz {

/// Pairs of features turned by position * base^(-2c / dim), and back.
void rotate(Draw& draw) {
  const std::array<Index, 4> shape{draw.integer(0, 3), draw.integer(0, 3), draw.integer(0, 20),
                                   2 * draw.integer(1, 20)};
  const Index dim = draw.chance(50) ? shape[3] : 2 * draw.integer(1, shape[3] / 2);
  const bool half = draw.chance(50);
  const double base = draw.one_of({10000., 100., 2.}), factor = draw.one_of({1., 2.5});
  const RotaryConfig config{.dim = dim,
                            .base = base,
                            .layout = half ? RotaryLayout::half : RotaryLayout::interleaved,
                            .scaling = RotaryScaling::linear(factor)};
  const bool shared = draw.chance(40);
  Matrix<int> positions(shared ? 1 : shape[0], shape[2]);
  for (Index n = 0; n < positions.size(); ++n) {
    positions.data()[n] = static_cast<int>(draw.integer(-50, 3000));
  }
  const Numbers x = draw_numbers(draw, shape, 1);
  const auto turned = [&](Real direction) {
    Numbers y = x;
    for_each_place(shape, [&](Index b, Index h, Index i, Index c) {
      const Index pair = half ? c % (dim / 2) : c / 2;
      const bool second = half ? c >= dim / 2 : c % 2 == 1;
      if (c >= dim) return;
      const Real angle = direction * static_cast<Real>(positions(shared ? 0 : b, i)) /
                         static_cast<Real>(factor) *
                         std::pow(static_cast<Real>(base),
                                  -Real(2) * static_cast<Real>(pair) / static_cast<Real>(dim));
      const Index other = half ? (second ? c - dim / 2 : c + dim / 2) : (second ? c - 1 : c + 1);
      y(b, h, i, c) =
          x(b, h, i, c) * std::cos(angle) + (second ? 1 : -1) * x(b, h, i, other) * std::sin(angle);
    });
    return y;
  };
  std::ostringstream text;
  text << "shape " << shape[0] << ", " << shape[1] << ", " << shape[2] << ", " << shape[3]
       << ", dim " << dim << ", base " << base << ", factor " << factor << ", half " << half;
  about() = text.str();
  Tolerance<float> tolerance((Sizes()));
  const Placed<float> placed(draw, x);
  Placed<float> out(draw, shape);
  const Numbers one(shape, 1);
  // Positions of one sequence are of rank 1.
  const Vector<int> row = shared ? Vector<int>(positions.row(0)) : Vector<int>();
  const auto with = [&](const auto& f) { shared ? f(row) : f(positions); };
  with([&](const auto& p) { rotary_into(out.view(), placed.view(), p, config); });
  compare("rotary", out.view(), turned(1), one, tolerance);
  out.check_surroundings("the output");
  with([&](const auto& p) {
    const Tensor<float, 4> back = rotary_backward(placed.view(), p, config);
    compare("rotary_backward", view(back), turned(-1), one, tolerance);
  });
  // In place.
  Placed<float> itself(draw, x);
  with([&](const auto& p) { rotary_into(itself.view(), itself.view(), p, config); });
  compare_bits("rotary in place", itself.view(), out.view());
}

}  // namespace heed::fuzz
