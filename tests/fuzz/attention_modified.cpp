#include "fuzz/attention.hpp"
#include "heed/modifier.hpp"

namespace heed::fuzz {
namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

struct BiasDraw {
  Tensor<float, 4> tensor, gradient;

  BiasDraw(Draw& draw, const Sizes& s)
      : tensor(draw.chance(50) ? s.batch : 1, draw.chance(50) ? s.heads : 1,
               draw.chance(70) ? s.queries : 1, draw.chance(70) ? s.keys : 1),
        gradient(tensor.dimensions()) {
    for (Index n = 0; n < tensor.size(); ++n) tensor.data()[n] = static_cast<float>(draw.number());
    gradient.setZero();
  }
  std::array<Index, 4> place(Index b, Index h, Index i, Index j) const {
    std::array<Index, 4> result{b, h, i, j};
    for (std::size_t axis = 0; axis < 4; ++axis) {
      if (tensor.dimension(axis) == 1) result[axis] = 0;
    }
    return result;
  }
  float value(Index b, Index h, Index i, Index j) const {
    const auto [x, y, z, w] = place(b, h, i, j);
    return tensor(x, y, z, w);
  }
  /// What is hidden does not matter, and -infinity is what no weight is made with.
  void poison(Draw& draw, const Case<float>& c) {
    const bool hide = draw.chance(40), nothing = draw.chance(20);
    if (!hide && !nothing) return;
    Tensor<bool, 4> seen(tensor.dimensions());
    seen.setConstant(false);
    for_each_place({c.sizes.batch, c.sizes.heads, c.sizes.queries, c.sizes.keys},
                   [&](Index b, Index h, Index i, Index j) {
                     const auto [x, y, z, w] = place(b, h, i, j);
                     seen(x, y, z, w) = seen(x, y, z, w) || c.attention.allowed(b, h, i, j);
                   });
    for (Index n = 0; n < tensor.size(); ++n) {
      const auto chosen = draw.word() % 16;
      if (hide && !seen.data()[n] && chosen < 12) {
        tensor.data()[n] = chosen % 2 == 0 ? std::numeric_limits<float>::quiet_NaN()
                                           : std::numeric_limits<float>::infinity();
      }
      if (nothing && seen.data()[n] && chosen < 4) {
        tensor.data()[n] = -std::numeric_limits<float>::infinity();
      }
    }
  }
  void check(const oracle::Gradients& g, const Case<float>& c) const {
    Numbers expected(
        {tensor.dimension(0), tensor.dimension(1), tensor.dimension(2), tensor.dimension(3)}),
        size = expected;
    for_each_place(g.scores.shape, [&](Index b, Index h, Index i, Index j) {
      const auto [x, y, z, w] = place(b, h, i, j);
      expected(x, y, z, w) += g.scores(b, h, i, j);
      size(x, y, z, w) += g.scores_magnitude(b, h, i, j);
    });
    auto tolerance = Tolerance<float>(c.sizes);
    tolerance.times *= 2;
    // A NaN among the gradients of an input is one here as well, or not: dropped pairs.
    for_each_place(expected.shape, [&](auto... p) {
      if (std::isnan(expected(p...))) size(p...) = expected(p...);
    });
    for_each_place(expected.shape, [&](auto... p) {
      const double x = gradient(p...);
      if (std::isnan(size(p...))) return;
      if (!(std::abs(static_cast<Real>(x) - expected(p...)) <=
            size(p...) * static_cast<Real>(tolerance.epsilon * tolerance.times) + Real(1e-35))) {
        found("the gradient of the bias: ", x, " and not ", expected(p...));
      }
    });
  }
};

/// softcap | alibi | bias
void all_shifts(Draw& draw) {
  const Sizes s = draw_sizes(draw);
  Case<float> c(draw, s);
  const auto mask = draw_mask<3>(draw, positions_of(s));
  const double cap = draw.one_of({.5, 5., 1000.});
  const auto slopes = draw_vector(draw, s.heads, draw.one_of({0., .05, .5}));
  Vector<double> d_slopes = Vector<double>::Zero(s.heads);
  BiasDraw added(draw, s);
  c.attention.similarity = oracle::dot_product(s.key_dim, Real(.25));
  c.attention.allowed = mask.allowed;
  c.attention.modifiers = {oracle::softcap(static_cast<Real>(cap)), oracle::alibi(reals(slopes)),
                           oracle::bias([&](Index b, Index h, Index i, Index j) {
                             return static_cast<Real>(added.value(b, h, i, j));
                           })};
  c.poison(draw);
  added.poison(draw, c);
  c.place(draw);
  const auto score = dot_product(.25) | softcap(cap) | alibi(slopes, d_slopes) |
                     bias(added.tensor, added.gradient);
  const auto forward = check_forward(draw, c, score, mask.mask);
  if (!draw.chance(60)) return;
  const auto g = check_backward(draw, c, score, mask.mask, forward);
  if (!known<float>(forward)) return;
  added.check(g, c);
  std::vector<Real> expected(at(s.heads)), size(at(s.heads));
  for_each_place(g.scores.shape, [&](Index b, Index h, Index i, Index j) {
    expected[at(h)] += g.scores(b, h, i, j) * static_cast<Real>(j - i);
    size[at(h)] += g.scores_magnitude(b, h, i, j) * static_cast<Real>(std::abs(j - i));
  });
  compare_parameters("the gradient of slope", d_slopes.data(), expected, size, Tolerance<float>(s));
}

/// relative_bias | score_mod | softcap | sink, where all but the sink have the chain rule behind
/// them.
void with_sink(Draw& draw) {
  const Sizes s = draw_sizes(draw);
  Case<float> c(draw, s);
  const auto mask = draw_mask<3>(draw, positions_of(s));
  const Index buckets = draw.integer(1, 9);
  Matrix<float> table(s.heads, buckets);
  for (Index n = 0; n < table.size(); ++n) table.data()[n] = static_cast<float>(draw.number());
  const auto bucket = [buckets](Index distance) {
    return ((distance * 7) % buckets + buckets) % buckets;
  };
  const auto logits = draw_vector(draw, s.heads, draw.one_of({0., 1., 20.}));
  Vector<double> d_logits = Vector<double>::Zero(s.heads);
  c.attention.similarity = oracle::dot_product(s.key_dim, Real(-.5));
  c.attention.allowed = mask.allowed;
  c.attention.sinks = reals(logits);
  c.has_sinks = true;
  c.attention.modifiers = {oracle::bias([&](Index, Index h, Index i, Index j) {
                             return static_cast<Real>(table(h, bucket(j - i)));
                           }),
                           [](Real x, Index b, Index h, Index i, Index j) {
                             const Real shift = Real(.125) * static_cast<Real>(j - i) / 2 +
                                                static_cast<Real>(b - h);
                             return oracle::Modified{x * Real(.75) + shift, Real(.75)};
                           },
                           oracle::softcap(30)};
  c.poison(draw);
  c.place(draw);
  const auto score = dot_product(-.5) | relative_bias(table, bucket) |
                     score_mod([](auto x, auto b, auto h, auto i, auto j) {
                       return x * .75F + .125F * ((j - i) / 2) + (b - h);
                     }) |
                     softcap(30) | sink(logits, d_logits);
  const auto forward = check_forward(draw, c, score, mask.mask);
  if (!draw.chance(60)) return;
  const auto g = check_backward(draw, c, score, mask.mask, forward);
  if (known<float>(forward)) {
    compare_parameters("the gradient of logit", d_logits.data(), g.sinks, g.sinks_magnitude,
                       Tolerance<float>(s));
  }
}

}  // namespace

void attend_modified(Draw& draw) { draw.chance(50) ? all_shifts(draw) : with_sink(draw); }

}  // namespace heed::fuzz
