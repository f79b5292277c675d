#include <functional>

#include "heed/heed.hpp"
#include "support.hpp"

/// Errors against double, of results and gradients, for scores that are easy to get wrong and
/// numbers of keys from 1 to 65,536. With u half the distance from 1 to the next number of the sums
/// and S the largest |score| that has a weight, a weight is off by a rounding of its score, u S,
/// and by those of its own, of short sums and of their sum, which are few whatever the number of
/// keys:
///
///   (S + 6) u max |value|, and half a unit of what the result is stored in
namespace heed::test {
namespace {

constexpr Index dim = 16;

/// Scores of query i and key j: query (1, x_i, 0 ...) and key (a_j, b_j, 0 ...).
struct Case {
  const char* name;
  double size;                                                    // S; 0 if scores are exact
  std::function<double(Index j, Index keys, double huge)> score;  // a_j
  double spread = 0;   // of x_i b_j, a random part that queries differ by
  double values = 1;   // their size
  bool hides = false;  // the first keys, several tiles if there are so many
};

const std::vector<Case> cases = {
    {"random", 8, [](auto...) { return 0.; }, 2.5},
    {"all equal", 0, [](auto...) { return -3.; }},
    // e^-60 times 65,536 is below any rounding.
    {"one dominant key", 0, [](Index j, Index keys, double) { return j == keys / 3 ? 60. : 0.; }},
    {"alternating signs", 6, [](Index j, Index, double) { return j % 2 ? 6. : -6.; }},
    {"subnormal", 0, [](Index j, Index, double) { return static_cast<double>(j % 5) * 1e-41; }, 0,
     0x1p-130},
    {"huge", 0, [](Index j, Index, double huge) { return huge * static_cast<double>(j % 7 - 3); }},
    {"negative behind hidden tiles", 46,
     [](Index j, Index, double) { return -40 - static_cast<double>(j % 13) / 2; }, 0, 1, true},
};

struct Problem {
  Reference query, key, value;
  Index hidden;

  Problem(const Case& c, Index queries, Index keys, double huge, double smallest)
      : query(constant({1, 1, queries, dim}, 0)),
        key(constant({1, 1, keys, dim}, 0)),
        value(random({1, 1, keys, dim}, 3, std::max(c.values, smallest))),
        hidden(c.hides ? std::min<Index>(keys / 2, 700) : 0) {
    const Reference x = random({1, 1, queries, 1}, 1, c.spread),
                    b = random({1, 1, keys, 1}, 2, c.spread);
    for (Index i = 0; i < queries; ++i) {
      query(0, 0, i, 0) = 1;
      query(0, 0, i, 1) = x(0, 0, i, 0);
    }
    // Of one sign: nothing cancels, and an error that grows with the sum shows.
    for (Index n = 0; n < value.size(); ++n) value.data()[n] = std::abs(value.data()[n]);
    for (Index j = 0; j < keys; ++j) {
      key(0, 0, j, 0) = c.score(j, keys, huge);
      key(0, 0, j, 1) = b(0, 0, j, 0);
    }
  }
  template <class Scalar>
  void round() {
    for (Reference* r : {&query, &key, &value}) *r = rounded<Scalar>(*r);
  }
};

double largest(const Reference& x) {
  double result = 0;
  for (Index n = 0; n < x.size(); ++n) result = std::max(result, std::abs(x.data()[n]));
  return result;
}

/// Every query sees the keys from `hidden` on.
auto mask_of(const Problem& p) {
  return sliding_window(p.query.dimension(2), -1,
                        std::vector<Index>{p.hidden + p.query.dimension(2)});
}
bool shows(const Problem& p, Index i, Index j) { return j >= p.hidden + i; }

template <class Scalar>
void expect_errors(const Case& c, Index keys) {
  constexpr bool half = std::is_same_v<Scalar, Eigen::half>;
  constexpr Index queries = 20;
  Problem p(c, queries, keys, half ? 2e4 : 1e29, half ? 0x1p-20 : 0);
  p.template round<Scalar>();
  const auto exact = attend<double>(
      p.query, p.key, p.value, dot(),
      [&](Index, Index, Index i, Index j) { return shows(p, i, j); }, [](auto...) { return 1.; });
  const double stored = std::is_same_v<Scalar, float> ? 0 : epsilon<Scalar>() / 2;
  // Products of weights and tiny values are rounded to whole 2^-149, results in half to whole 2^-24
  // and in bfloat16 to whole 2^-133.
  const double least = std::is_same_v<Scalar, float> ? 0 : half ? 0x1p-25 : 0x1p-134;
  const double bound = ((c.size + 8) * epsilon<float>() / 2 + stored) * largest(p.value) +
                       static_cast<double>(keys) * 0x1p-149 + least;
  const auto q = make<Scalar, 2>(p.query), k = make<Scalar, 2>(p.key), v = make<Scalar, 2>(p.value);
  EXPECT_TRUE(near(reference(attention(q, k, v, dot_product(), mask_of(p))), exact.output, bound))
      << "fused";
  EXPECT_TRUE(near(
      reference(attention_with_weights(q, k, v, dot_product(), mask_of(p)).output), exact.output,
      bound + static_cast<double>(keys) / 1024 * epsilon<float>() / 2 * largest(p.value)))
      << "definition";
  const auto first = make<Scalar, 2>(rows(p.query, 0, 1));
  Problem one = p;
  one.query = rows(p.query, 0, 1);
  EXPECT_TRUE(near(reference(attention(first, k, v, dot_product(), mask_of(one))),
                   rows(exact.output, 0, 1), bound))
      << "decoded";
}

template <class Scalar>
void expect_errors() {
  for (const Case& c : cases) {
    for (const Index keys : {1, 7, 64, 257, 4096, 65536}) {
      SCOPED_TRACE(::testing::Message() << c.name << ", " << keys << " keys");
      expect_errors<Scalar>(c, keys);
    }
  }
}
// The sums over sixteen tiles are set apart; a tile that follows alone is not all there is. Tiles
// have from 60 to 252 keys.
TEST(Numerics, OfOneTileAfterSixteen) {
  for (Index tile = 60; tile <= 252; tile += 12) {
    SCOPED_TRACE(tile);
    for (const Index more : {1, 40, 100}) expect_errors<float>(cases[0], 16 * tile + more);
  }
}

using Double = Matrix<double>;
Double matrix(const Reference& x) { return make<double, 2>(x); }

/// Gradients, or, of the absolute values of all numbers, what their errors are measured by: dS is
/// then the sum of the sizes of its parts, P (|dP| + |delta|).
struct Gradients {
  Double query, key, value;
  Gradients(const Double& p, const Double& q, const Double& k, const Double& v, const Double& g,
            double sign) {
    const Double dp = g * v.transpose();
    const Vector<double> delta = (p.array() * dp.array()).rowwise().sum();
    const Double ds = p.array() * (dp.colwise() - sign * delta).array();
    query = ds * k;
    key = ds.transpose() * q;
    value = p.transpose() * g;
  }
};

// P comes from the log-sum-exp, which is rounded at its own size: S is the largest score there is.
// Of huge scores nothing is left of the log of the sum (see Extremes.GradientsOfLogitsNear...).
TEST(Numerics, OfGradients) {
  for (const Case& c : cases) {
    for (const Index keys : {1, 7, 64, 257, 1576, 4096}) {
      if (std::string(c.name) == "huge") continue;
      SCOPED_TRACE(::testing::Message() << c.name << ", " << keys << " keys");
      const Problem p(c, 20, keys, 0, 0);
      const Reference grad = random({1, 1, 20, dim}, 5);
      const auto exact = attend<double>(
          p.query, p.key, p.value, dot(),
          [&](Index, Index, Index i, Index j) { return shows(p, i, j); },
          [](auto...) { return 1.; });
      const Double w = matrix(exact.weights), q = matrix(p.query), k = matrix(p.key),
                   v = matrix(p.value), g = matrix(grad);
      const Gradients right(w, q, k, v, g, 1),
          size(w, q.cwiseAbs(), k.cwiseAbs(), v.cwiseAbs(), g.cwiseAbs(), -1);
      const auto query = make<float, 2>(p.query), key = make<float, 2>(p.key),
                 value = make<float, 2>(p.value);
      const auto pass = attention_forward(query, key, value, dot_product(), mask_of(p));
      const auto found = attention_backward(query, key, value, pass, make<float, 2>(grad),
                                            dot_product(), mask_of(p));
      const double s = exact.largest_score + std::log(static_cast<double>(keys));
      const auto check = [&](const Matrix<float>& x, const Double& expected, const Double& parts,
                             const char* name) {
        const double bound = (s + 12) * epsilon<float>() / 2 * parts.cwiseAbs().maxCoeff() +
                             static_cast<double>(keys) * 0x1p-149;
        EXPECT_TRUE(near(reference(x), reference(expected), bound)) << name;
      };
      check(found.query, right.query, size.query, "query");
      check(found.key, right.key, size.key, "key");
      check(found.value, right.value, size.value, "value");
    }
  }
}

TEST(Numerics, OfFloat) { expect_errors<float>(); }
TEST(Numerics, OfHalf) { expect_errors<Eigen::half>(); }
TEST(Numerics, OfBfloat16) { expect_errors<Eigen::bfloat16>(); }

}  // namespace
}  // namespace heed::test
