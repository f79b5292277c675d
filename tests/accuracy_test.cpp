#include "heed/heed.hpp"
#include "support.hpp"

/// Rounding errors of sums over many keys. The yardstick is a plain computation in float that takes
/// its sums in blocks of 128, against double: errors must not grow with the number of keys as those
/// of one chain of additions do.
namespace heed::test {
namespace {

using Single = Matrix<float>;
using Double = Matrix<double>;

/// Standard normal, rounded to float.
Double normal(Index rows, Index columns, std::uint64_t seed, double scale = 1) {
  std::mt19937_64 engine(seed);
  const auto uniform = [&] { return static_cast<double>((engine() >> 11) + 1) * 0x1p-53; };
  return Double::NullaryExpr(rows, columns, [&] {
    const double x = std::sqrt(-2 * std::log(uniform())) * std::cos(2 * M_PI * uniform());
    return static_cast<double>(static_cast<float>(scale * x));
  });
}

double rms(const auto& x, const Double& exact) {
  return std::sqrt((x.template cast<double>() - exact).squaredNorm() / exact.squaredNorm());
}

/// a b with the sums over the inner axis in blocks of 128.
Single product(const Single& a, const Single& b) {
  Single result = Single::Zero(a.rows(), b.cols());
  for (Index first = 0; first < a.cols(); first += 128) {
    const Index last = std::min(first + 128, a.cols());
    Single part = Single::Zero(a.rows(), b.cols());
    for (Index k = first; k < last; ++k) part += a.col(k) * b.row(k);
    result += part;
  }
  return result;
}

struct Results {
  Double output, query, key, value;
};

Results exactly(const Double& q, const Double& k, const Double& v, const Double& g) {
  const double scale = 1 / std::sqrt(static_cast<double>(q.cols()));
  Double p = (q * k.transpose() * scale).array().exp();
  for (Index i = 0; i < p.rows(); ++i) p.row(i) /= p.row(i).sum();
  const Double output = p * v, dp = g * v.transpose();
  const Vector<double> delta = (g.array() * output.array()).rowwise().sum();
  const Double ds = p.array() * (dp.colwise() - delta).array();
  return {output, ds * k * scale, ds.transpose() * q * scale, p.transpose() * g};
}

Results plainly(const Double& q, const Double& k, const Double& v, const Double& g) {
  const float scale = 1 / std::sqrt(static_cast<float>(q.cols()));
  const Single query = q.cast<float>(), key = k.cast<float>(), value = v.cast<float>(),
               grad = g.cast<float>();
  const Single s = product(query, key.transpose()) * scale;
  // The weights of the output, and those of the gradients, which come from the log-sum-exp of a
  // pass in float: a rounding of a number of up to log(keys) = 10.
  Single p(s.rows(), s.cols()), again(s.rows(), s.cols());
  for (Index i = 0; i < s.rows(); ++i) {
    const float largest = s.row(i).maxCoeff();
    p.row(i) = (s.row(i).array() - largest).exp();
    float sum = 0;
    for (Index first = 0; first < s.cols(); first += 128) {
      float part = 0;
      for (Index j = first; j < std::min(first + 128, s.cols()); ++j) part += p(i, j);
      sum += part;
    }
    p.row(i) /= sum;
    again.row(i) = (s.row(i).array() - (largest + std::log(sum))).exp();
  }
  const Single output = product(p, value), dp = product(grad, value.transpose());
  const Vector<float> delta = (grad.array() * output.array()).rowwise().sum();
  const Single ds = again.array() * (dp.colwise() - delta).array();
  const auto wide = [](const Single& x) { return Double(x.cast<double>()); };
  return {wide(output), wide(product(ds, key) * scale),
          wide(product(ds.transpose(), query) * scale), wide(product(again.transpose(), grad))};
}

TEST(Accuracy, ErrorsDoNotGrowWithTheNumberOfKeys) {
  for (const double deviation : {.25, 1., 4.}) {
    for (const Index keys : {128, 1024, 4096, 16384}) {
      if (deviation == 4 && keys > 1024) continue;  // few keys count, however many there are
      SCOPED_TRACE(::testing::Message() << keys << " keys, scores of deviation " << deviation);
      const Index queries = 24, dim = 64;
      const Double q = normal(queries, dim, 1, deviation), k = normal(keys, dim, 2),
                   v = normal(keys, dim, 3), g = normal(queries, dim, 4);
      const Results exact = exactly(q, k, v, g), plain = plainly(q, k, v, g);
      const Single query = q.cast<float>(), key = k.cast<float>(), value = v.cast<float>(),
                   grad = g.cast<float>();
      const auto pass = attention_forward(query, key, value);
      const auto gradients = attention_backward(query, key, value, pass, grad);
      // Half of the margin is for the log-sum-exp of a pass, which is one rounding of a number of
      // up to log(keys) = 10, the other for chance.
      const auto expect = [](const auto& x, const Double& right, const Double& by_blocks,
                             const char* name) {
        const double error = rms(x, right), allowed = 1.3 * rms(by_blocks, right) + 2e-8;
        EXPECT_TRUE(error <= allowed) << name << ": " << error << ", allowed " << allowed;
      };
      expect(pass.output, exact.output, plain.output, "output");
      expect(gradients.query, exact.query, plain.query, "gradient of queries");
      expect(gradients.key, exact.key, plain.key, "gradient of keys");
      expect(gradients.value, exact.value, plain.value, "gradient of values");
      Single decoded(queries, dim);
      for (Index i = 0; i < queries; ++i) {
        decoded.row(i) = attention(Single(query.row(i)), key, value);
      }
      expect(decoded, exact.output, plain.output, "one query at a time");
      const auto defined = attention_with_weights(query, key, value).output;
      expect(defined, exact.output, plain.output, "by the definition");
    }
  }
}

// A weight is off by the error of its exponent. The plain one is that of the difference to the
// largest score, which is rounded; with a fused multiply-add nothing is before the whole part of
// the exponent is gone, without it the product with log2(e) is as well.
TEST(Accuracy, SmallWeightsAreAsExact) {
  for (const Index keys : {128, 1000}) {
    const Single scores = normal(20, keys, 6, 4).cast<float>();
    const Single weights = softmax(scores);
    double squares = 0, plain_squares = 0;
    for (Index i = 0; i < scores.rows(); ++i) {
      const float largest = scores.row(i).maxCoeff();
      const auto power = [&](Index j) {
        return std::exp(static_cast<double>(scores(i, j)) - static_cast<double>(largest));
      };
      double total = 0;
      for (Index j = 0; j < keys; ++j) total += power(j);
      for (Index j = 0; j < keys; ++j) {
        const float plain = std::exp(scores(i, j) - largest) / static_cast<float>(total);
        const double right = power(j) / total;
        squares += std::pow(static_cast<double>(weights(i, j)) / right - 1, 2);
        plain_squares += std::pow(static_cast<double>(plain) / right - 1, 2);
      }
    }
    const double ratio = std::sqrt(squares / plain_squares);
    EXPECT_TRUE(ratio <= (detail::fused_multiply_add ? .8 : 1.7)) << ratio << ", " << keys;
  }
}

// Keys that all have the score c: log(keys) + c, to half a unit in the last place of the larger and
// the errors of parts that are smaller.
TEST(Accuracy, LogSumExpIsRoundedOnce) {
  const auto natural = score_mod([](auto s, auto, auto, auto, auto) { return s; });
  for (const float c : {0.F, .375F, .8125F, -.6875F}) {
    for (Index keys = 2; keys <= 3000; keys += 1 + keys / 4) {
      const Single q = Single::Ones(20, 1), one = Single::Ones(1, 16),
                   k = Single::Constant(keys, 1, c), k16 = Single::Constant(keys, 16, c / 16);
      const double right = std::log(static_cast<double>(keys)) + static_cast<double>(c);
      const auto nearest = static_cast<float>(std::log(static_cast<double>(keys)));
      const auto unit = static_cast<double>(std::nextafter(nearest, 100.F) - nearest);
      for (const float lse :
           {attention_forward(q, k, k, dot_product() | natural).log_sum_exp(3),
            attention_forward(one, k16, k16, dot_product() | natural).log_sum_exp(0)}) {
        const double off = std::abs(static_cast<double>(lse) - right) / unit;
        EXPECT_TRUE(off <= .75) << off << ", " << keys << " keys of score " << c;
      }
    }
  }
}

TEST(Accuracy, SoftmaxOfLongRows) {
  for (const Index keys : {128, 4096, 65536}) {
    const Double scores = normal(3, keys, 5);
    Double exact = scores.array().exp();
    for (Index i = 0; i < exact.rows(); ++i) exact.row(i) /= exact.row(i).sum();
    // The exponential, the sum and the division each round about once.
    EXPECT_TRUE(rms(softmax(Single(scores.cast<float>())), exact) <= 1.5e-7) << keys;
  }
}

}  // namespace
}  // namespace heed::test
