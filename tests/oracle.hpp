#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

/// Attention by its definition in long double: loops over vectors of numbers, which share no code
/// with the library and know none of its types. Beside each result stands a magnitude: a
/// computation in numbers of precision epsilon is off by a few epsilons times that.
namespace oracle {

using Real = long double;
using Index = std::ptrdiff_t;

inline constexpr Real infinity = std::numeric_limits<Real>::infinity();

/// (batch, heads, rows, columns), the last axis first in memory.
struct Numbers {
  std::array<Index, 4> shape{};
  std::vector<Real> data;

  Numbers() = default;
  explicit Numbers(const std::array<Index, 4>& s, Real x = 0)
      : shape(s), data(static_cast<std::size_t>(s[0] * s[1] * s[2] * s[3]), x) {}
  Real* row(Index b, Index h, Index i) {
    return data.data() + ((b * shape[1] + h) * shape[2] + i) * shape[3];
  }
  const Real* row(Index b, Index h, Index i) const {
    return data.data() + ((b * shape[1] + h) * shape[2] + i) * shape[3];
  }
  Real& operator()(Index b, Index h, Index i, Index j) { return row(b, h, i)[j]; }
  Real operator()(Index b, Index h, Index i, Index j) const { return row(b, h, i)[j]; }
};

// ---------------------------------------------------------------- scores

/// A similarity with its derivatives.
struct Similarity {
  Real value = 0;
  Real magnitude = 0;  ///< of the error of the value, in epsilons
  bool flat = false;   ///< has no derivative other than 0 anywhere, nor one that is NaN
  /// By the features of the query, of the key, and by each parameter; with magnitudes of errors.
  std::vector<Real> by_query, by_key, by_parameter, query_magnitude, key_magnitude,
      parameter_magnitude;
};
using SimilarityFunction = std::function<void(const Real* query, const Real* key, Similarity& out)>;

/// A score after a modifier, with the derivative by the score before, and the most that it is.
struct Modified {
  Real value, slope, steepest = 1;
};
using ModifierFunction = std::function<Modified(Real score, Index b, Index h, Index i, Index j)>;

/// sum of q_c k_c times scale
inline SimilarityFunction dot_product(Index dim, Real scale) {
  return [dim, scale](const Real* q, const Real* k, Similarity& out) {
    Real sum = 0, size = 0;
    for (Index c = 0; c < dim; ++c) {
      sum += q[c] * k[c];
      size += std::abs(q[c] * k[c]);
      const auto at = static_cast<std::size_t>(c);
      out.by_query[at] = scale * k[c];
      out.by_key[at] = scale * q[c];
      out.query_magnitude[at] = std::abs(scale * k[c]);
      out.key_magnitude[at] = std::abs(scale * q[c]);
    }
    out.value = sum * scale;
    out.magnitude = size * std::abs(scale);
  };
}

/// sum over c of w_c tanh(q_c + k_c)
inline SimilarityFunction additive(std::vector<Real> w) {
  return [w](const Real* q, const Real* k, Similarity& out) {
    out.value = out.magnitude = 0;
    for (std::size_t c = 0; c < w.size(); ++c) {
      const Real t = std::tanh(q[c] + k[c]);
      out.value += w[c] * t;
      out.magnitude += std::abs(w[c]) * (1 + std::abs(q[c]) + std::abs(k[c]));
      out.by_query[c] = out.by_key[c] = w[c] * (1 - t * t);
      out.query_magnitude[c] = out.key_magnitude[c] =
          std::abs(w[c]) * (1 + std::abs(q[c]) + std::abs(k[c]));
      out.by_parameter[c] = t;
      out.parameter_magnitude[c] = 1 + std::abs(q[c]) + std::abs(k[c]);
    }
  };
}

/// -sum over c of ((q_c - k_c) w_c)^2 / 2; an infinitely far key is one of score -infinity.
inline SimilarityFunction gaussian(std::vector<Real> w) {
  return [w](const Real* q, const Real* k, Similarity& out) {
    out.value = out.magnitude = 0;
    for (std::size_t c = 0; c < w.size(); ++c) {
      const Real d = q[c] - k[c], size = std::abs(q[c]) + std::abs(k[c]);
      out.value -= d * d * w[c] * w[c] / 2;
      out.magnitude += 4 * size * size * w[c] * w[c];
      out.by_query[c] = -d * w[c] * w[c];
      out.by_key[c] = d * w[c] * w[c];
      out.query_magnitude[c] = out.key_magnitude[c] = 2 * size * w[c] * w[c];
      out.by_parameter[c] = -d * d * w[c];
      out.parameter_magnitude[c] = 4 * size * size * std::abs(w[c]);
    }
  };
}

/// The two scores of a radius: log(1 - |q - k| / r) inside, or 0; -infinity outside. A pair too
/// near the edge for a computation of precision `epsilon` to tell has a magnitude of infinity.
inline SimilarityFunction within(Index dim, Real radius, bool triangle, Real epsilon) {
  return [=](const Real* q, const Real* k, Similarity& out) {
    Real squares = 0, size = 0;
    for (Index c = 0; c < dim; ++c) {
      squares += (q[c] - k[c]) * (q[c] - k[c]);
      size += std::abs(q[c]) + std::abs(k[c]);
    }
    const Real distance = std::sqrt(squares);
    const bool inside = triangle ? distance < radius : squares <= radius * radius;
    const bool unknown =
        std::abs(distance - radius) <= 16 * epsilon * (radius + size) && distance != 0;
    const Real below = radius - distance;
    out.flat = !triangle;
    out.value = std::isnan(squares) ? squares
                : !inside           ? -infinity
                : triangle          ? std::log(1 - distance / radius)
                                    : Real(0);
    out.magnitude = unknown ? infinity : inside && triangle ? 2 * (radius + size) / below : Real(0);
    for (Index c = 0; c < dim; ++c) {
      const auto at = static_cast<std::size_t>(c);
      const bool sloped = triangle && inside && distance > 0;
      const Real slope = sloped ? -(q[c] - k[c]) / (distance * below) : Real(0);
      out.by_query[at] = slope;
      out.by_key[at] = -slope;
      out.query_magnitude[at] = out.key_magnitude[at] =
          sloped ? std::abs(slope) * (1 + (radius + size) / below) + size / (distance * below) : 0;
    }
  };
}

/// q^T M k with M (query_dim, key_dim), row after row.
inline SimilarityFunction bilinear(std::vector<Real> m, Index query_dim, Index key_dim) {
  return [=](const Real* q, const Real* k, Similarity& out) {
    out.value = out.magnitude = 0;
    std::fill(out.by_query.begin(), out.by_query.end(), Real(0));
    std::fill(out.by_key.begin(), out.by_key.end(), Real(0));
    std::fill(out.query_magnitude.begin(), out.query_magnitude.end(), Real(0));
    std::fill(out.key_magnitude.begin(), out.key_magnitude.end(), Real(0));
    for (Index r = 0; r < query_dim; ++r) {
      for (Index c = 0; c < key_dim; ++c) {
        const auto row = static_cast<std::size_t>(r), column = static_cast<std::size_t>(c);
        const auto at = static_cast<std::size_t>(r * key_dim + c);
        const Real w = m[at];
        out.value += q[r] * w * k[c];
        out.magnitude += std::abs(q[r] * w * k[c]);
        out.by_query[row] += w * k[c];
        out.by_key[column] += q[r] * w;
        out.query_magnitude[row] += std::abs(w * k[c]);
        out.key_magnitude[column] += std::abs(q[r] * w);
        out.by_parameter[at] = q[r] * k[c];
        out.parameter_magnitude[at] = std::abs(q[r] * k[c]);
      }
    }
    // A query without features meets the key as q M = 0, and 0 times NaN is NaN.
    for (Index c = 0; query_dim == 0 && c < key_dim; ++c) out.value += 0 * k[c];
  };
}

/// sum over c of f(q_c, k_c); `slopes` gives the derivatives {by query, by key}.
inline SimilarityFunction pairwise(Index dim, std::function<Real(Real, Real)> f,
                                   std::function<std::array<Real, 2>(Real, Real)> slopes) {
  return [=](const Real* q, const Real* k, Similarity& out) {
    out.value = out.magnitude = 0;
    for (Index c = 0; c < dim; ++c) {
      const auto at = static_cast<std::size_t>(c);
      out.value += f(q[c], k[c]);
      const auto [by_query, by_key] = slopes(q[c], k[c]);
      out.by_query[at] = by_query;
      out.by_key[at] = by_key;
      const Real size = 1 + std::abs(q[c]) + std::abs(k[c]);
      out.magnitude += size * size;
      out.query_magnitude[at] = out.key_magnitude[at] = size;
    }
  };
}

/// cap tanh(s / cap)
inline ModifierFunction softcap(Real cap) {
  return [cap](Real s, Index, Index, Index, Index) {
    const Real t = std::tanh(s / cap);
    return Modified{cap * t, 1 - t * t, 1};
  };
}

/// s + slope_h (j - i)
inline ModifierFunction alibi(std::vector<Real> slopes) {
  return [slopes](Real s, Index, Index h, Index i, Index j) {
    return Modified{s + slopes[static_cast<std::size_t>(h)] * static_cast<Real>(j - i), 1};
  };
}

/// s + added(b, h, i, j)
inline ModifierFunction bias(std::function<Real(Index, Index, Index, Index)> added) {
  return [added](Real s, Index b, Index h, Index i, Index j) {
    return Modified{s + added(b, h, i, j), 1};
  };
}

// ---------------------------------------------------------------- dropout

/// What a weight is multiplied by: 0 or 1 / (1 - p), by a counter of (seed, batch, head, query,
/// key) that is mixed after each of them (Steele, Lea and Flood, "Fast splittable pseudorandom
/// number generators", 2014).
inline Real dropout(double probability, std::uint64_t seed, Index b, Index h, Index i, Index j) {
  if (probability == 0) return 1;
  std::uint64_t x = seed;
  for (const Index n : {b, h, i, j}) {
    x += 0x9e3779b97f4a7c15ULL * (static_cast<std::uint64_t>(n) + 1);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    x ^= x >> 31;
  }
  const bool kept = static_cast<double>(x) >= probability * 18446744073709551616.0;
  return kept ? static_cast<Real>(1 / (1 - probability)) : Real(0);
}

// ---------------------------------------------------------------- attention

struct Attention {
  Numbers query, key, value;
  SimilarityFunction similarity;
  std::size_t parameters = 0;  ///< of the similarity
  std::vector<ModifierFunction> modifiers;
  std::function<bool(Index b, Index h, Index i, Index j)> allowed;
  double dropout = 0;
  std::uint64_t seed = 0;
  std::vector<Real> sinks;  ///< logits of the query heads, or none

  Index group() const { return key.shape[1] == 0 ? 1 : query.shape[1] / key.shape[1]; }
  Real kept(Index b, Index h, Index i, Index j) const {
    return oracle::dropout(dropout, seed, b, h, i, j);
  }
};

struct Forward {
  Numbers output, weights, log_sum_exp, scores;  ///< log_sum_exp (batch, heads, queries, 1)
  Numbers output_magnitude;
  /// By how many epsilons the score of a weight that counts may be off, for each query; infinite
  /// where the computation cannot know the answer.
  Numbers score_magnitude;
};

struct Gradients {
  Numbers query, key, value, scores;  ///< scores: after all modifiers
  std::vector<Real> parameters, sinks;
  Numbers query_magnitude, key_magnitude, value_magnitude, scores_magnitude;
  std::vector<Real> parameters_magnitude, sinks_magnitude;
};

class Evaluation {
 public:
  explicit Evaluation(const Attention& of) : a(of) {
    const auto query_dim = static_cast<std::size_t>(a.query.shape[3]);
    const auto key_dim = static_cast<std::size_t>(a.key.shape[3]);
    s.by_query.resize(query_dim);
    s.query_magnitude.resize(query_dim);
    s.by_key.resize(key_dim);
    s.key_magnitude.resize(key_dim);
    s.by_parameter.resize(a.parameters);
    s.parameter_magnitude.resize(a.parameters);
  }

  Forward forward() {
    const auto [batch, heads, queries, dim] = a.query.shape;
    const Index keys = a.key.shape[2], width = a.value.shape[3], group = a.group();
    Forward f;
    f.output = f.output_magnitude = Numbers({batch, heads, queries, width});
    f.weights = Numbers({batch, heads, queries, keys});
    f.scores = Numbers({batch, heads, queries, keys}, -infinity);
    f.log_sum_exp = Numbers({batch, heads, queries, 1}, -infinity);
    f.score_magnitude = Numbers({batch, heads, queries, 1});
    std::vector<Real> errors(static_cast<std::size_t>(keys));
    for (Index b = 0; b < batch; ++b) {
      for (Index h = 0; h < heads; ++h) {
        for (Index i = 0; i < queries; ++i) {
          Real* const scores = f.scores.row(b, h, i);
          Real* const weights = f.weights.row(b, h, i);
          Real largest = a.sinks.empty() ? -infinity : a.sinks[static_cast<std::size_t>(h)];
          Real error = std::isfinite(largest) ? std::abs(largest) : 0;
          bool unknown = false, not_a_number = false;
          for (Index j = 0; j < keys; ++j) {
            if (!a.allowed(b, h, i, j)) continue;
            scores[j] = score(b, h, i, j, errors[static_cast<std::size_t>(j)]);
            unknown = unknown || errors[static_cast<std::size_t>(j)] == infinity;
            not_a_number = not_a_number || std::isnan(scores[j]);
            if (scores[j] > largest) largest = scores[j];
          }
          Real sum = not_a_number ? std::numeric_limits<Real>::quiet_NaN() : Real(0);
          const Real shift = largest == -infinity ? 0 : largest;
          if (!a.sinks.empty()) sum += std::exp(a.sinks[static_cast<std::size_t>(h)] - shift);
          for (Index j = 0; j < keys; ++j) {
            if (!a.allowed(b, h, i, j)) continue;
            weights[j] = std::exp(scores[j] - shift);
            sum += weights[j];
            if (scores[j] >= shift - 80) {
              error = std::max(error, errors[static_cast<std::size_t>(j)] + std::abs(scores[j]));
            }
          }
          f.score_magnitude(b, h, i, 0) = unknown ? infinity : 1 + error;
          if (sum == 0) continue;
          f.log_sum_exp(b, h, i, 0) = shift + std::log(sum);
          for (Index j = 0; j < keys; ++j) {
            if (!a.allowed(b, h, i, j)) continue;
            weights[j] /= sum;
            const Real kept = weights[j] * a.kept(b, h, i, j);
            for (Index c = 0; c < width; ++c) {
              const Real v = a.value(b, h / group, j, c);
              f.output(b, h, i, c) += kept * v;
              f.output_magnitude(b, h, i, c) += std::abs(kept * v);
            }
          }
        }
      }
    }
    return f;
  }

  /// By the chain rule, for the gradient of the output given.
  Gradients backward(const Forward& f, const Numbers& grad_output) {
    const auto [batch, heads, queries, dim] = a.query.shape;
    const Index keys = a.key.shape[2], width = a.value.shape[3], group = a.group();
    const Index key_dim = a.key.shape[3];
    Gradients g;
    g.query = g.query_magnitude = Numbers(a.query.shape);
    g.key = g.key_magnitude = Numbers(a.key.shape);
    g.value = g.value_magnitude = Numbers(a.value.shape);
    g.scores = g.scores_magnitude = Numbers({batch, heads, queries, keys});
    g.parameters.resize(a.parameters);
    g.parameters_magnitude.resize(a.parameters);
    g.sinks.resize(a.sinks.size());
    g.sinks_magnitude.resize(a.sinks.size());
    for (Index b = 0; b < batch; ++b) {
      for (Index h = 0; h < heads; ++h) {
        for (Index i = 0; i < queries; ++i) {
          const Real lse = f.log_sum_exp(b, h, i, 0), error = f.score_magnitude(b, h, i, 0);
          if (lse == -infinity) continue;
          Real delta = 0, delta_size = 0;
          for (Index c = 0; c < width; ++c) {
            delta += grad_output(b, h, i, c) * f.output(b, h, i, c);
            delta_size += std::abs(grad_output(b, h, i, c)) * f.output_magnitude(b, h, i, c);
          }
          if (!a.sinks.empty()) {
            const Real p = std::exp(a.sinks[static_cast<std::size_t>(h)] - lse);
            g.sinks[static_cast<std::size_t>(h)] -= p * delta;
            g.sinks_magnitude[static_cast<std::size_t>(h)] += p * delta_size * error;
          }
          for (Index j = 0; j < keys; ++j) {
            if (!a.allowed(b, h, i, j)) continue;
            const Real p = f.weights(b, h, i, j), keep = a.kept(b, h, i, j);
            Real dp = 0, dp_size = 0;
            for (Index c = 0; c < width; ++c) {
              const Real d_output = grad_output(b, h, i, c);
              // A weight that is NaN is so where it is dropped, too.
              g.value(b, h / group, j, c) += p * keep * d_output;
              g.value_magnitude(b, h / group, j, c) += p * keep * std::abs(d_output) * error;
              if (keep == 0) continue;
              const Real term = d_output * a.value(b, h / group, j, c);
              dp += term;
              dp_size += std::abs(term);
            }
            const Real d_score = p * (keep * dp - delta);
            const Real size = p * (keep * dp_size + delta_size) * error;
            g.scores(b, h, i, j) = d_score;
            g.scores_magnitude(b, h, i, j) = size;
            // What has no weight has no influence, and a slope that is not finite none either.
            if (d_score == 0 && f.scores(b, h, i, j) == -infinity) continue;
            Real unused = 0;
            score(b, h, i, j, unused);
            if (s.flat) continue;
            const Real through = d_score * slope, through_size = size * steepest;
            for (Index c = 0; c < dim; ++c) {
              const auto at = static_cast<std::size_t>(c);
              g.query(b, h, i, c) += through * s.by_query[at];
              g.query_magnitude(b, h, i, c) += through_size * s.query_magnitude[at];
            }
            for (Index c = 0; c < key_dim; ++c) {
              const auto at = static_cast<std::size_t>(c);
              g.key(b, h / group, j, c) += through * s.by_key[at];
              g.key_magnitude(b, h / group, j, c) += through_size * s.key_magnitude[at];
            }
            for (std::size_t n = 0; n < a.parameters; ++n) {
              g.parameters[n] += through * s.by_parameter[n];
              g.parameters_magnitude[n] += through_size * s.parameter_magnitude[n];
            }
          }
        }
      }
    }
    return g;
  }

 private:
  /// The score after all modifiers, and by how many epsilons it may be off. Leaves the similarity
  /// in `s`, and the derivative by it in `slope`.
  Real score(Index b, Index h, Index i, Index j, Real& error) {
    a.similarity(a.query.row(b, h, i), a.key.row(b, h / a.group(), j), s);
    Real value = s.value;
    error = s.magnitude;
    slope = steepest = 1;
    for (const auto& modifier : a.modifiers) {
      if (value == -infinity) break;  // no weight, and it stays so
      const Modified m = modifier(value, b, h, i, j);
      slope *= m.slope;
      steepest *= m.steepest;
      error = error * m.steepest + std::abs(m.value) + std::abs(value);
      value = m.value;
    }
    return value;
  }

  const Attention& a;
  Similarity s;
  Real slope = 1, steepest = 1;
};

}  // namespace oracle
