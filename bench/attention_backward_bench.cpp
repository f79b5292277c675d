#include "attention_cases.hpp"

namespace heed_bench {
namespace {

/// What the gradients have to be, in double, from the definition: all probabilities of a head.
/// score(i, j) and its derivatives are those of additive(w) or of the scaled dot product.
struct Gradients {
  Matrix<double> query, key, value;
};

struct BackwardData {
  Tensor<float, 4> query, key, value, grad_output;  // (1, heads, seq, dim)
  heed::AttentionPass<Tensor<float, 4>, Tensor<float, 3>> pass;
  heed::AttentionGradients<Tensor<float, 4>, Tensor<float, 4>, Tensor<float, 4>> gradients;
  heed::Vector<float> weight, d_weight;
  // One head's textbook implementation.
  Matrix<float> scores, products, activations, d_activations;
  std::optional<Eigen::ThreadPool> pool;

  explicit BackwardData(const Extents& e)
      : query(random<float, 4>({1, e.heads, e.queries, e.dim}, 1)),
        key(random<float, 4>({1, e.kv_heads, e.keys, e.dim}, 2)),
        value(random<float, 4>({1, e.kv_heads, e.keys, e.dim}, 3)),
        grad_output(random<float, 4>({1, e.heads, e.queries, e.dim}, 4)),
        gradients{query, key, value},
        weight(e.dim),
        d_weight(heed::Vector<float>::Zero(e.dim)) {
    fill(weight.data(), weight.size(), 5);
  }
};

Matrix<double> wide(const Tensor<float, 4>& x, Index h) {
  return head(x, 0, h).template cast<double>();
}

/// Gradients of one head in double, a query at a time. `features(i)` gives the scores of query i
/// and adds what their gradients say to those of query and key.
template <class Scores, class Spread>
Gradients definition(const BackwardData& x, Index h, const Scores& scores, const Spread& spread) {
  const Matrix<double> q = wide(x.query, h), k = wide(x.key, h), v = wide(x.value, h),
                       grad = wide(x.grad_output, h);
  Gradients g{Matrix<double>::Zero(q.rows(), q.cols()), Matrix<double>::Zero(k.rows(), k.cols()),
              Matrix<double>::Zero(v.rows(), v.cols())};
  for (Index i = 0; i < q.rows(); ++i) {
    Eigen::VectorXd p = scores(i, q, k);
    p = (p.array() - p.maxCoeff()).exp();
    p /= p.sum();
    const Eigen::VectorXd dp = v * grad.row(i).transpose();
    const Eigen::VectorXd ds = p.array() * (dp.array() - p.dot(dp));
    g.value.noalias() += p * grad.row(i);
    spread(i, ds, q, k, g);
  }
  return g;
}

Gradients dot_definition(const BackwardData& x, Index h, bool causal) {
  const double scale = 1 / std::sqrt(static_cast<double>(x.query.dimension(3)));
  return definition(
      x, h,
      [&](Index i, const auto& q, const auto& k) {
        Eigen::VectorXd s = k * q.row(i).transpose() * scale;
        if (causal) s.tail(s.size() - i - 1).setConstant(-std::numeric_limits<double>::infinity());
        return s;
      },
      [&](Index i, const auto& ds, const auto& q, const auto& k, Gradients& g) {
        g.query.row(i) = scale * ds.transpose() * k;
        g.key.noalias() += scale * ds * q.row(i);
      });
}

Gradients additive_definition(const BackwardData& x, Index h) {
  const Eigen::VectorXd w = x.weight.cast<double>();
  Matrix<double> t;
  return definition(
      x, h,
      [&](Index i, const auto& q, const auto& k) {
        t = (k.rowwise() + q.row(i)).array().tanh();
        return Eigen::VectorXd(t * w);
      },
      [&](Index i, const auto& ds, const auto&, const auto&, Gradients& g) {
        const Matrix<double> d =
            ((1 - t.array().square()).rowwise() * w.transpose().array()).colwise() * ds.array();
        g.query.row(i) = d.colwise().sum();
        g.key += d;
      });
}

/// Query's gradients, and, as further rows, key's and value's, sampled like any other output.
Expected sampled(const BackwardData& x, const auto& gradients_of_head) {
  const Index heads = x.query.dimension(1), rows = x.query.dimension(2), dim = x.query.dimension(3);
  Expected expected(3, heads, rows, dim);
  for (Index h = 0; h < heads; ++h) {
    const Gradients g = gradients_of_head(h);
    const Matrix<double>* all[] = {&g.query, &g.key, &g.value};
    for (Index n = 0; n < 3; ++n) {
      for (std::size_t row = 0; row < expected.rows.size(); ++row) {
        for (Index c = 0; c < dim; ++c) {
          expected.values(n, h, static_cast<Index>(row), c) = (*all[n])(expected.rows[row], c);
        }
      }
    }
  }
  return expected;
}

/// The three gradients as one tensor of (3, heads, seq, dim), which `verified` fills and reads.
template <class Run>
Contender verified_gradients(const std::string& who, std::shared_ptr<BackwardData> x, Run run,
                             const Expected& expected) {
  auto together = std::make_shared<Tensor<float, 4>>(3, x->query.dimension(1),
                                                     x->query.dimension(2), x->query.dimension(3));
  const auto once = [x, together, run] {
    run();
    const Tensor<float, 4>* all[] = {&x->gradients.query, &x->gradients.key, &x->gradients.value};
    for (Index n = 0; n < 3; ++n) together->chip(n, 0) = all[n]->chip(0, 0);
  };
  // Sums over queries of products of about 1: some hundred units of rounding of the largest.
  Contender result =
      verified(who, once, [together] { return heed::view(*together); }, expected, 2e-4);
  result.run = [x, run] { run(); };
  return result;
}

template <class Score, class Mask>
Contender heed_backward(const std::string& name, std::shared_ptr<BackwardData> x,
                        const Expected& expected, const Score& score, const Mask& mask,
                        const heed::AttentionOptions& options = {}) {
  x->pass = heed::attention_forward(x->query, x->key, x->value, score, mask);
  return verified_gradients(
      name + ": heed", x,
      [x = x.get(), score, mask, options] {
        heed::attention_backward_into(x->gradients, x->query, x->key, x->value, x->pass,
                                      x->grad_output, score, mask, options);
      },
      expected);
}

/// Whole matrices with Eigen, a head at a time, probabilities from log-sum-exp.
void eigen_dot(BackwardData& x, bool causal) {
  const float scale = 1 / std::sqrt(static_cast<float>(x.query.dimension(3)));
  for (Index h = 0; h < x.query.dimension(1); ++h) {
    const auto q = head(x.query, 0, h), k = head(x.key, 0, h), v = head(x.value, 0, h),
               grad = head(x.grad_output, 0, h), output = head(x.pass.output, 0, h);
    x.scores.noalias() = q * k.transpose();
    x.products.noalias() = grad * v.transpose();
    for (Index i = 0; i < x.scores.rows(); ++i) {
      auto p = x.scores.row(i).array();
      p = (p * scale - x.pass.log_sum_exp(0, h, i)).exp();
      if (causal) p.tail(p.size() - i - 1) = 0;
      auto ds = x.products.row(i).array();
      ds = p * (ds - grad.row(i).dot(output.row(i))) * scale;
    }
    head(x.gradients.value, 0, h).noalias() = x.scores.transpose() * grad;
    head(x.gradients.query, 0, h).noalias() = x.products * k;
    head(x.gradients.key, 0, h).noalias() = x.products.transpose() * q;
  }
}

/// The textbook with Eigen's arrays: for each query the tanh of all keys' features.
void eigen_additive(BackwardData& x) {
  const auto q = head(x.query, 0, 0), k = head(x.key, 0, 0), v = head(x.value, 0, 0),
             grad = head(x.grad_output, 0, 0), output = head(x.pass.output, 0, 0);
  auto dq = head(x.gradients.query, 0, 0), dk = head(x.gradients.key, 0, 0),
       dv = head(x.gradients.value, 0, 0);
  dk.setZero();
  dv.setZero();
  heed::Vector<float> p, ds;
  for (Index i = 0; i < q.rows(); ++i) {
    x.activations = (k.rowwise() + q.row(i)).array().tanh();
    p = ((x.activations * x.weight).array() - x.pass.log_sum_exp(0, 0, i)).exp();
    ds = p.array() * ((v * grad.row(i).transpose()).array() - grad.row(i).dot(output.row(i)));
    dv.noalias() += p * grad.row(i);
    x.d_weight.noalias() += x.activations.transpose() * ds;
    x.d_activations =
        ((1 - x.activations.array().square()).rowwise() * x.weight.transpose().array()).colwise() *
        ds.array();
    dk += x.d_activations;
    dq.row(i) = x.d_activations.colwise().sum();
  }
}

template <class Mask>
void add_dot(const std::string& name, Index seq, Index dim, const Mask& mask, bool causal,
             Goal goal) {
  add(name, [=](const std::string& who) {
    const Extents e = Extents::square(1, seq, dim);
    auto x = std::make_shared<BackwardData>(e);
    const Expected expected = sampled(*x, [&](Index h) { return dot_definition(*x, h, causal); });
    Case c;
    c.data = x;
    c.flops = 2.5 * e.flops();  // five products where the forward pass has two
    if (causal) c.flops *= static_cast<double>(seq + 1) / static_cast<double>(2 * seq);
    c.goal = goal;
    c.heed = heed_backward(who, x, expected, heed::scaled_dot_product(), mask);
    c.eigen = verified_gradients(
        who + ": Eigen", x, [x = x.get(), causal] { eigen_dot(*x, causal); }, expected);
    return c;
  });
}

void add_threads(Index seq) {
  add(join("attention_backward/threads/D64/S", seq), [seq](const std::string& who) {
    const Extents e = Extents::square(1, seq, 64);
    auto x = std::make_shared<BackwardData>(e);
    x->pool.emplace(2);
    const Expected expected = sampled(*x, [&](Index h) { return dot_definition(*x, h, false); });
    Case c;
    c.data = x;
    c.flops = 2.5 * e.flops();
    c.heed = heed_backward(who, x, expected, heed::scaled_dot_product(), heed::no_mask(),
                           {.pool = &*x->pool});
    c.base = heed_backward(who, x, expected, heed::scaled_dot_product(), heed::no_mask()).run;
    c.base_name = "1 thread";
    c.goal = of_base(1.85);
    c.threaded = true;
    return c;
  });
}

void add_additive(Index seq) {
  add(join("attention_backward/additive/D64/S", seq), [seq](const std::string& who) {
    auto x = std::make_shared<BackwardData>(Extents::square(1, seq, 64));
    const Expected expected = sampled(*x, [&](Index h) { return additive_definition(*x, h); });
    Case c;
    c.data = x;
    c.goal = {Measure::eigen, 8};
    c.heed =
        heed_backward(who, x, expected, heed::additive(x->weight, x->d_weight), heed::no_mask());
    c.eigen =
        verified_gradients(who + ": Eigen", x, [x = x.get()] { eigen_additive(*x); }, expected);
    return c;
  });
}

void add_all() {
  const std::string prefix = "attention_backward/";
  for (const Index dim : {32, 64, 128}) {
    for (const Index seq : {128, 512, 1024}) {
      const Goal goal = of_peak(dim == 32 ? .82 : dim == 64 ? .86 : .80);
      add_dot(join(prefix, "plain/D", dim, "/S", seq), seq, dim, heed::no_mask(), false,
              seq < 512 ? Goal{} : goal);
      if (seq < 1024) continue;
      add_dot(join(prefix, "causal/D", dim, "/S", seq), seq, dim, heed::causal(), true,
              of_peak(goal.value - .05));
    }
  }
  add_threads(1024);
  add_additive(128);
  add_additive(512);
}

const Suite suite(add_all);

}  // namespace
}  // namespace heed_bench
