#include <heed/softmax.hpp>

#include "support.hpp"

namespace heed_bench {
namespace {

struct Scores {
  Tensor<float, 4> scores, weights;  // (batch, heads, queries, keys)
  std::vector<Index> lens;           // of each batch
};

/// kept(b, i) keys, from the first, take part for query i of batch b.
template <class Kept>
Expected reference(const Tensor<float, 4>& scores, const Kept& kept) {
  Expected expected(scores.dimension(0), scores.dimension(1), scores.dimension(2),
                    scores.dimension(3));
  expected.values.setZero();
  for (Index b = 0; b < scores.dimension(0); ++b) {
    for (Index h = 0; h < scores.dimension(1); ++h) {
      for (std::size_t row = 0; row < expected.rows.size(); ++row) {
        const Index i = expected.rows[row], keys = kept(b, i);
        double sum = 0;
        for (Index j = 0; j < keys; ++j) sum += std::exp(static_cast<double>(scores(b, h, i, j)));
        for (Index j = 0; j < keys; ++j) {
          expected.values(b, h, static_cast<Index>(row), j) =
              std::exp(static_cast<double>(scores(b, h, i, j))) / sum;
        }
      }
    }
  }
  return expected;
}

/// A maximum, a difference, an exponential, a sum and a product count as five operations for each
/// element kept.
template <class Run, class Kept>
Case make(const std::string& name, std::shared_ptr<Scores> x, double goal, const Run& run,
          const Kept& kept) {
  const Expected expected = reference(x->scores, kept);
  const auto check = [&](const char* who, const std::function<void()>& contender) {
    return verified(
        name + ": " + who, contender, [x] { return heed::view(x->weights); }, expected, 1e-6);
  };
  const Index batch = x->scores.dimension(0), heads = x->scores.dimension(1),
              queries = x->scores.dimension(2), keys = x->scores.dimension(3);
  Case c;
  c.data = x;
  c.goal = {Measure::eigen, goal};
  for (Index b = 0; b < batch; ++b) {
    for (Index i = 0; i < queries; ++i) c.flops += 5.0 * static_cast<double>(heads * kept(b, i));
  }
  c.heed = check("heed", [x = x.get(), run] { x->weights = run(*x); });
  c.eigen = check("Eigen", [=, x = x.get()] {
    Eigen::ArrayXf row;
    for (Index b = 0; b < batch; ++b) {
      for (Index h = 0; h < heads; ++h) {
        const auto scores = head(x->scores, b, h);
        auto weights = head(x->weights, b, h);
        for (Index i = 0; i < queries; ++i) {
          const Index n = kept(b, i);
          row = scores.row(i).head(n).transpose().array();
          row = (row - row.maxCoeff()).exp();
          weights.row(i).head(n) = (row / row.sum()).matrix().transpose();
          weights.row(i).tail(keys - n).setZero();
        }
      }
    }
  });
  return c;
}

std::shared_ptr<Scores> make_scores(Index batch, Index heads, Index queries, Index keys) {
  auto x = std::make_shared<Scores>();
  x->scores = random<float, 4>({batch, heads, queries, keys}, 1);
  x->weights.resize(batch, heads, queries, keys);
  for (Index b = 0; b < batch; ++b) x->lens.push_back(keys * (b + 1) / batch - b % 3);
  return x;
}

/// A product, a sum, a difference and a product count as four operations for each element.
Case make_backward(const std::string& name, Index batch, Index heads, Index queries, Index keys) {
  struct Data {
    Tensor<float, 4> weights, grad_weights, grad_scores;
  };
  auto x = std::make_shared<Data>();
  x->weights = heed::softmax(random<float, 4>({batch, heads, queries, keys}, 1));
  x->grad_weights = random<float, 4>({batch, heads, queries, keys}, 2);
  x->grad_scores.resize(batch, heads, queries, keys);
  Expected expected(batch, heads, queries, keys);
  for (Index b = 0; b < batch; ++b) {
    for (Index h = 0; h < heads; ++h) {
      for (std::size_t row = 0; row < expected.rows.size(); ++row) {
        const Eigen::RowVectorXd
            p = head(x->weights, b, h).row(expected.rows[row]).cast<double>(),
            g = head(x->grad_weights, b, h).row(expected.rows[row]).cast<double>();
        for (Index j = 0; j < keys; ++j) {
          expected.values(b, h, static_cast<Index>(row), j) = p(j) * (g(j) - p.dot(g));
        }
      }
    }
  }
  const auto check = [&](const char* who, const std::function<void()>& contender) {
    return verified(
        name + ": " + who, contender, [x] { return heed::view(x->grad_scores); }, expected, 1e-6);
  };
  Case c;
  c.data = x;
  c.flops = 4.0 * static_cast<double>(x->weights.size());
  c.heed = check("heed", [x = x.get()] {
    x->grad_scores = heed::softmax_backward(x->weights, x->grad_weights);
  });
  c.eigen = check("Eigen", [=, x = x.get()] {
    for (Index b = 0; b < batch; ++b) {
      for (Index h = 0; h < heads; ++h) {
        const auto weights = head(x->weights, b, h), grad = head(x->grad_weights, b, h);
        auto to = head(x->grad_scores, b, h);
        for (Index i = 0; i < queries; ++i) {
          const float mean = weights.row(i).dot(grad.row(i));
          to.row(i) = weights.row(i).cwiseProduct((grad.row(i).array() - mean).matrix());
        }
      }
    }
  });
  return c;
}

void add_all() {
  for (const Index n : {128, 512}) {
    add(join("softmax/plain/B4xH2xS", n), [n](const std::string& name) {
      return make(
          name, make_scores(4, 2, n, n), 1.6,
          [](const Scores& x) { return heed::softmax(x.scores); }, [n](Index, Index) { return n; });
    });
  }
  for (const Index n : {128, 512}) {
    add(join("softmax/valid_lens/B4xH2xS", n), [n](const std::string& name) {
      auto x = make_scores(4, 2, n, n);
      return make(
          name, x, 1.4, [](const Scores& s) { return heed::masked_softmax(s.scores, s.lens); },
          [lens = x->lens](Index b, Index) { return lens[static_cast<std::size_t>(b)]; });
    });
  }
  for (const Index n : {128, 512}) {
    add(join("softmax/causal/B4xH2xS", n), [n](const std::string& name) {
      return make(
          name, make_scores(4, 2, n, n), 1.4,
          [](const Scores& x) { return heed::masked_softmax(x.scores, heed::causal()); },
          [](Index, Index i) { return i + 1; });
    });
  }
  for (const Index n : {128, 512}) {
    add(join("softmax/backward/B4xH2xS", n),
        [n](const std::string& name) { return make_backward(name, 4, 2, n, n); });
  }
}

const Suite suite(add_all);

}  // namespace
}  // namespace heed_bench
