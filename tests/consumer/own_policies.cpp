// A score, a modifier and a mask of this project's own, on heed's fused engines, forwards and
// backwards, against plain loops and central differences.
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <vector>

#include <heed/heed.hpp>

using heed::Index;

static bool ran_on_vectors = false;

// -sum over features of rate_h |q_h - k_h|: a Laplacian kernel with a rate for each feature.
struct Laplacian : heed::ScorePolicy {
  std::vector<double> rates;

  explicit Laplacian(std::vector<double> r) : rates(std::move(r)) {}

  template <class Number>
  struct Bound {
    static constexpr heed::ScoreTraits traits{.vectorised = true};
    const double* rates;

    template <class T>
    T step(const T& sum, const T& q, const T& k, Index feature) const {
      using std::abs;
      if (sizeof(T) > 2 * sizeof(Number)) ran_on_vectors = true;
      return sum + abs(q - k) * static_cast<Number>(rates[feature]);
    }
    template <class T>
    T finish(const T& sum) const {
      return -sum;
    }
  };
  template <class Number>
  Bound<Number> bind(const heed::Problem& problem) const {
    heed::check_widths_agree(problem, "the Laplacian score");
    if (static_cast<Index>(rates.size()) != problem.key_dim) {
      problem.refuse("the Laplacian score has ", static_cast<Index>(rates.size()), " rates for ",
                     problem.key_dim, " features");
    }
    return {rates.data()};
  }
};

// score - cost log(1 + |j - i|), a penalty of the distance; the cost is trained.
struct Distance : heed::ModifierPolicy {
  double cost;
  double* d_cost;

  Distance(double c, double* dc) : cost(c), d_cost(dc) {}

  template <class Number>
  struct Bound {
    static constexpr heed::ModifierTraits traits{
        .vectorised = true, .effect = heed::Effect::shifts, .has_parameters = true};
    static constexpr const char* parameter_name = "the cost of distance";
    Number cost;
    const double* parameter;
    heed::View<double, 1> gradient;

    template <class T>
    static T penalty(const T& apart) {
      using std::abs, std::log;
      return log(abs(apart) + 1);
    }
    template <class T>
    T operator()(const T& score, Index, Index, const auto& query, const auto& key) const {
      return score - penalty(T(key - query)) * cost;
    }
    heed::View<const double, 1> parameters() const { return {parameter, {1}, {1}}; }
    Index partials() const { return 1; }
    heed::ScoreAxes shared_axes(const heed::Problem&) const { return {}; }
    void add_gradient(const heed::PairTile<Number>& tile, Number* partial) const {
      for (Index j = 0; j < tile.keys; ++j) {
        for (Index i = 0; i < tile.queries; ++i) {
          const auto apart = static_cast<Number>(tile.key + j - tile.query - i);
          *partial -= tile.at(j, i) * penalty(apart);
        }
      }
    }
    void add_partial(Index, Number sum) const { gradient(0) += static_cast<double>(sum); }
  };
  template <class Number>
  Bound<Number> bind(const heed::Problem&) const {
    return {static_cast<Number>(cost), &cost, {d_cost, {1}, {1}}};
  }
};

// Keys of the query's own block of `length` positions, and every key that is a multiple of it.
struct BlocksAndPosts : heed::MaskPolicy {
  Index length;

  explicit BlocksAndPosts(Index n) : length(n) {}

  struct Bound {
    Index length, keys;
    bool allows(Index, Index, Index i, Index j) const {
      return i / length == j / length || j % length == 0;
    }
  };
  Bound bind(const heed::Problem& problem) const { return {length, problem.keys}; }
};

// A window of the newest keys, as an exact range: what is outside is never looked at.
struct Newest : heed::MaskPolicy {
  Index count;

  explicit Newest(Index n) : count(n) {}

  struct Bound {
    Index first, keys;
    heed::KeySet<1> row(Index, Index, Index) const { return heed::KeySet<1>::of({first, keys}); }
    bool allows(Index, Index, Index, Index j) const { return j >= first; }
  };
  Bound bind(const heed::Problem& problem) const {
    return {problem.keys > count ? problem.keys - count : 0, problem.keys};
  }
};

using Real = double;
using Allowed = std::function<bool(Index, Index)>;

static heed::Matrix<Real> by_loops(const heed::Matrix<Real>& q, const heed::Matrix<Real>& k,
                                   const heed::Matrix<Real>& v, const std::vector<double>& rates,
                                   double cost, const Allowed& allowed) {
  heed::Matrix<Real> out = heed::Matrix<Real>::Zero(q.rows(), v.cols());
  for (Index i = 0; i < q.rows(); ++i) {
    double sum = 0;
    for (Index j = 0; j < k.rows(); ++j) {
      if (!allowed(i, j)) continue;
      double score = -cost * std::log(1 + std::abs(static_cast<double>(j - i)));
      for (Index c = 0; c < q.cols(); ++c)
        score -= rates[static_cast<std::size_t>(c)] * std::abs(q(i, c) - k(j, c));
      sum += std::exp(score);
      out.row(i) += std::exp(score) * v.row(j);
    }
    if (sum > 0) out.row(i) /= sum;
  }
  return out;
}

static int failures = 0;
static void expect(bool good, const char* what) {
  if (!good) std::printf("failed: %s\n", what);
  failures += !good;
}

template <class Mask>
static void check(const Mask& mask, const Allowed& allowed, const char* name) {
  const Index queries = 37, keys = 41, dim = 11;
  std::vector<double> rates;
  for (Index c = 0; c < dim; ++c) rates.push_back(.1 + .05 * static_cast<double>(c));
  heed::Matrix<Real> q = heed::Matrix<Real>::Random(queries, dim);
  heed::Matrix<Real> k = heed::Matrix<Real>::Random(keys, dim);
  const heed::Matrix<Real> v = heed::Matrix<Real>::Random(keys, 5);
  const heed::Matrix<Real> d_out = heed::Matrix<Real>::Random(queries, 5);
  const double cost = .7;
  double d_cost = 0;
  const auto score = Laplacian(rates) | Distance(cost, &d_cost);

  const auto expected = by_loops(q, k, v, rates, cost, allowed);
  const auto pass = heed::attention_forward(q, k, v, score, mask);
  expect((pass.output - expected).cwiseAbs().maxCoeff() <= 1e-12, name);
  const auto single = heed::attention(q.cast<float>().eval(), k.cast<float>().eval(),
                                      v.cast<float>().eval(), score, mask);
  expect((single.template cast<double>() - expected).cwiseAbs().maxCoeff() <= 1e-5, name);
  const auto defined = heed::attention_with_weights(q, k, v, score, mask);
  expect((defined.output - expected).cwiseAbs().maxCoeff() <= 1e-12, name);

  const auto gradients = heed::attention_backward(q, k, v, pass, d_out, score, mask);
  const auto loss = [&](double with_cost) {
    return (by_loops(q, k, v, rates, with_cost, allowed).array() * d_out.array()).sum();
  };
  const double step = 1e-6;
  const auto slope = [&](Real& x) {
    const Real at = x;
    x = at + step;
    const double above = loss(cost);
    x = at - step;
    const double below = loss(cost);
    x = at;
    return (above - below) / (2 * step);
  };
  for (Index n = 0; n < 12; ++n) {
    expect(std::abs(slope(q(3 * n, n % dim)) - gradients.query(3 * n, n % dim)) <= 1e-7, name);
    expect(std::abs(slope(k(3 * n, n % dim)) - gradients.key(3 * n, n % dim)) <= 1e-7, name);
  }
  const double by_cost = (loss(cost + step) - loss(cost - step)) / (2 * step);
  expect(std::abs(by_cost - d_cost) <= 1e-7, name);
}

int main() {
  check(
      BlocksAndPosts(7), [](Index i, Index j) { return i / 7 == j / 7 || j % 7 == 0; },
      "pairs that are asked for");
  check(Newest(9), [](Index, Index j) { return j >= 32; }, "an exact range");
  check(
      BlocksAndPosts(7) && !Newest(9),
      [](Index i, Index j) { return (i / 7 == j / 7 || j % 7 == 0) && j < 32; }, "composed");
  expect(ran_on_vectors, "the score runs on vectors");
  try {
    const heed::Matrix<float> x = heed::Matrix<float>::Ones(2, 3);
    heed::attention(x, x, x, Laplacian({1, 2}));
    expect(false, "rates that do not fit are refused");
  } catch (const std::invalid_argument& error) {
    std::printf("%s\n", error.what());
  }
  std::printf("%s\n", failures == 0 ? "all as it should be" : "FAILED");
  return failures == 0 ? 0 : 1;
}
