#include <heed/rotary.hpp>

#include "support.hpp"

namespace heed_bench {
namespace {

constexpr Index first = 100;
constexpr double base = 10000;

struct Rows {
  Tensor<float, 4> from, to;  // (batch, heads, seq, dim)
};

/// Two products and a sum count as three operations for each element. The base is a copy of the
/// same elements, and what is written with Eigen has its sines and cosines ready.
Case make(const std::string& name, heed::RotaryLayout layout, Index heads, Index seq, Index dim,
          double goal) {
  auto x = std::make_shared<Rows>();
  x->from = random<float, 4>({1, heads, seq, dim}, 1);
  x->to.resize(1, heads, seq, dim);
  const bool halves = layout == heed::RotaryLayout::half;
  const Index pairs = dim / 2, second = halves ? pairs : 1, step = halves ? 1 : 2;
  const auto angle = [pairs](Index i, Index c) {
    return static_cast<double>(first + i) *
           std::pow(base, -static_cast<double>(c) / static_cast<double>(pairs));
  };
  Expected expected(1, heads, seq, dim);
  for (Index h = 0; h < heads; ++h) {
    for (std::size_t row = 0; row < expected.rows.size(); ++row) {
      const Index i = expected.rows[row], at = static_cast<Index>(row);
      for (Index c = 0; c < pairs; ++c) {
        const auto u = static_cast<double>(x->from(0, h, i, step * c)),
                   v = static_cast<double>(x->from(0, h, i, step * c + second));
        const double cos = std::cos(angle(i, c)), sin = std::sin(angle(i, c));
        expected.values(0, h, at, step * c) = u * cos - v * sin;
        expected.values(0, h, at, step * c + second) = v * cos + u * sin;
      }
    }
  }
  const auto check = [&](const char* who, const std::function<void()>& contender) {
    return verified(
        name + ": " + who, contender, [x] { return heed::view(x->to); }, expected, 1e-6);
  };
  Case c;
  c.data = x;
  c.flops = 3.0 * static_cast<double>(x->from.size());
  c.goal = {Measure::base, goal};
  c.base_name = "copy";
  c.base = [x = x.get()] {
    std::memcpy(x->to.data(), x->from.data(),
                static_cast<std::size_t>(x->from.size()) * sizeof(float));
    benchmark::ClobberMemory();
  };
  c.heed = check("heed", [x = x.get(), layout] {
    heed::rotary_into(x->to, x->from, first, {.base = base, .layout = layout});
  });
  if (halves) {
    Matrix<float> cosine(seq, pairs), sine(seq, pairs);
    for (Index i = 0; i < seq; ++i) {
      for (Index p = 0; p < pairs; ++p) {
        cosine(i, p) = static_cast<float>(std::cos(angle(i, p)));
        sine(i, p) = static_cast<float>(std::sin(angle(i, p)));
      }
    }
    c.eigen = check("Eigen", [x = x.get(), heads, pairs, cosine, sine] {
      for (Index h = 0; h < heads; ++h) {
        const auto from = head(x->from, 0, h);
        auto to = head(x->to, 0, h);
        to.leftCols(pairs) =
            from.leftCols(pairs).cwiseProduct(cosine) - from.rightCols(pairs).cwiseProduct(sine);
        to.rightCols(pairs) =
            from.rightCols(pairs).cwiseProduct(cosine) + from.leftCols(pairs).cwiseProduct(sine);
      }
    });
  }
  return c;
}

void add_all() {
  for (const bool halves : {true, false}) {
    const auto layout = halves ? heed::RotaryLayout::half : heed::RotaryLayout::interleaved;
    const std::string prefix = join("rotary/", halves ? "half" : "interleaved", "/H32xD128xS");
    for (const Index seq : {512, 2048}) {
      add(join(prefix, seq),
          [layout, seq](const std::string& name) { return make(name, layout, 32, seq, 128, .6); });
    }
  }
}

const Suite suite(add_all);

}  // namespace
}  // namespace heed_bench
