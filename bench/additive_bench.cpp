#include <heed/attention.hpp>

#include "support.hpp"

namespace heed_bench {
namespace {

struct Inputs {
  Tensor<float, 4> query, key, value, output;  // (1, heads, seq, dim)
  heed::Vector<float> weight;
  Matrix<float> features;  // of Eigen: tanh(q_i + k_j) for all pairs
  EigenAttention<float> eigen;
};

/// Counted as attention is, 2 N M (hidden + D) flops: a tanh and its multiply-add as one
/// multiply-add, so that the figure stands beside those of the dot product.
Case make(const std::string& name, Index heads, Index seq, Index hidden) {
  auto x = std::make_shared<Inputs>();
  x->query = random<float, 4>({1, heads, seq, hidden}, 1);
  x->key = random<float, 4>({1, heads, seq, hidden}, 2);
  x->value = random<float, 4>({1, heads, seq, hidden}, 3);
  x->output.resize(1, heads, seq, hidden);
  x->weight.resize(hidden);
  fill(x->weight.data(), hidden, 4);
  x->weight /= std::sqrt(static_cast<float>(hidden));

  const Expected expected = reference_attention<float>(
      heed::view(x->query), heed::view(x->key), heed::view(x->value),
      [&](Index, Index, Index, const auto& q, const auto& k) {
        double sum = 0;
        for (Index d = 0; d < hidden; ++d) {
          sum += static_cast<double>(x->weight(d)) * std::tanh(q(d) + k(d));
        }
        return sum;
      });
  const auto check = [&](const char* who, const std::function<void()>& run) {
    return verified(
        name + ": " + who, run, [x] { return heed::view(x->output); }, expected,
        attention_bound<float>());
  };

  Case c;
  c.data = x;
  c.flops = 4.0 * static_cast<double>(heads * seq * seq * hidden);
  c.heed = check("heed", [x = x.get()] {
    heed::attention_into(x->output, x->query, x->key, x->value, heed::additive(x->weight));
  });
  c.eigen = check("Eigen", [x = x.get(), heads, seq, hidden] {
    x->features.resize(seq * seq, hidden);
    for (Index h = 0; h < heads; ++h) {
      const auto q = head(x->query, 0, h), k = head(x->key, 0, h);
      for (Index i = 0; i < seq; ++i) {
        x->features.middleRows(i * seq, seq) = k.rowwise() + q.row(i);
      }
      // In a step of its own: tanh of a broadcast sum is not vectorised by Eigen 3.4 with g++.
      x->features = x->features.array().tanh().matrix();
      x->eigen.scores.resize(seq, seq);
      Eigen::Map<Eigen::VectorXf>(x->eigen.scores.data(), seq * seq).noalias() =
          x->features * x->weight;
      x->eigen.softmax_times(head(x->value, 0, h), head(x->output, 0, h));
    }
  });
  return c;
}

void add_all() {
  const auto add_shape = [](Index heads, Index seq, Index hidden, Goal goal) {
    add(join("additive/hidden", hidden, "/H", heads, "xS", seq), [=](const std::string& name) {
      Case c = make(name, heads, seq, hidden);
      c.goal = goal;
      return c;
    });
  };
  add_shape(1, 128, 64, {Measure::eigen, 10});
  add_shape(8, 128, 64, {Measure::eigen, 10});
  add_shape(1, 512, 64, {});
  add_shape(1, 128, 32, {});
}

const Suite suite(add_all);

}  // namespace
}  // namespace heed_bench
