#include <heed/multi_head_attention.hpp>

#include "support.hpp"

namespace heed_bench {
namespace {

struct Layer {
  heed::MultiHeadAttention<float> module;
  Tensor<float, 3> input, output;           // (batch, seq, embed)
  Matrix<float> query, key, value, joined;  // of Eigen: (batch * seq, embed)
  EigenAttention<float> eigen;
};

/// The same in double, with Eigen's products, which the matmul's benchmarks have checked.
Expected reference(const Layer& x, Index heads) {
  const Index batch = x.input.dimension(0), seq = x.input.dimension(1),
              embed = x.input.dimension(2), dim = embed / heads;
  const Matrix<double> input =
      Eigen::Map<const Matrix<float>>(x.input.data(), batch * seq, embed).cast<double>();
  const auto project = [&](const auto& linear) {
    return Matrix<double>(input * linear.weight.template cast<double>().transpose());
  };
  const Matrix<double> q = project(x.module.query_projection), k = project(x.module.key_projection),
                       v = project(x.module.value_projection),
                       w = x.module.output_projection.weight.cast<double>();
  Expected expected(batch, 1, seq, embed);
  for (Index b = 0; b < batch; ++b) {
    for (std::size_t row = 0; row < expected.rows.size(); ++row) {
      Eigen::RowVectorXd joined(embed);
      for (Index h = 0; h < heads; ++h) {
        const auto keys = k.block(b * seq, h * dim, seq, dim);
        Eigen::VectorXd weights =
            keys * q.row(b * seq + expected.rows[row]).segment(h * dim, dim).transpose() /
            std::sqrt(static_cast<double>(dim));
        weights = (weights.array() - weights.maxCoeff()).exp();
        weights /= weights.sum();
        joined.segment(h * dim, dim) = weights.transpose() * v.block(b * seq, h * dim, seq, dim);
      }
      const Eigen::RowVectorXd output = joined * w.transpose();
      for (Index d = 0; d < embed; ++d) {
        expected.values(b, 0, static_cast<Index>(row), d) = output(d);
      }
    }
  }
  return expected;
}

Case make(const std::string& name, Index batch, Index seq, Index embed, Index heads) {
  auto x = std::make_shared<Layer>(
      Layer{heed::MultiHeadAttention<float>({.embed_dim = embed, .num_heads = heads}, 1),
            random<float, 3>({batch, seq, embed}, 1),
            {},
            {},
            {},
            {},
            {},
            {}});
  x->output.resize(batch, seq, embed);
  const Expected expected = reference(*x, heads);
  const auto check = [&](const char* who, const std::function<void()>& run) {
    return verified(
        name + ": " + who, run, [x] { return heed::split_heads(x->output, 1); }, expected, 1e-4);
  };

  Case c;
  c.data = x;
  c.heed = check("heed", [x = x.get()] { x->output = x->module(x->input, x->input, x->input); });
  c.eigen = check("Eigen", [x = x.get(), batch, seq, embed, heads] {
    const Index dim = embed / heads;
    const Eigen::Map<const Matrix<float>> input(x->input.data(), batch * seq, embed);
    x->query.noalias() = input * x->module.query_projection.weight.transpose();
    x->key.noalias() = input * x->module.key_projection.weight.transpose();
    x->value.noalias() = input * x->module.value_projection.weight.transpose();
    x->joined.resize(batch * seq, embed);
    for (Index b = 0; b < batch; ++b) {
      for (Index h = 0; h < heads; ++h) {
        const auto block = [&](Matrix<float>& whole) {
          return whole.block(b * seq, h * dim, seq, dim);
        };
        x->eigen(block(x->query), block(x->key), block(x->value), block(x->joined),
                 [](Matrix<float>&) {});
      }
    }
    Eigen::Map<Matrix<float>>(x->output.data(), batch * seq, embed).noalias() =
        x->joined * x->module.output_projection.weight.transpose();
  });

  // The goal: within 10 % of four matmuls at .90 of the peak and the attention at its own goal.
  const double matmuls = 8.0 * static_cast<double>(batch * seq * embed * embed),
               attention = 4.0 * static_cast<double>(batch * seq * seq * embed);
  c.flops = matmuls + attention;
  c.goal = {Measure::peak, c.flops / (matmuls / .90 + attention / (seq < 512 ? .84 : .86)) / 1.10};
  return c;
}

/// A projection of few tokens by weights of bfloat16 reads these once, which with one token takes
/// all of the time: beside a plain read of them.
Case few_tokens(const std::string& name, Index tokens, Index width, Goal goal) {
  struct Data {
    heed::Linear<Eigen::bfloat16> layer;
    Tensor<float, 4> input, output;
  };
  auto x = std::make_shared<Data>();
  x->layer.weight.resize(width, width);
  fill(x->layer.weight.data(), x->layer.weight.size(), 1);
  x->input = random<float, 4>({1, 1, tokens, width}, 2);
  x->output.resize(1, 1, tokens, width);
  Expected expected(1, 1, tokens, width);
  for (std::size_t row = 0; row < expected.rows.size(); ++row) {
    for (Index o = 0; o < width; ++o) {
      double sum = 0;
      for (Index d = 0; d < width; ++d) {
        sum += static_cast<double>(x->input(0, 0, expected.rows[row], d)) *
               static_cast<double>(static_cast<float>(x->layer.weight(o, d)));
      }
      expected.values(0, 0, static_cast<Index>(row), o) = sum;
    }
  }
  Case c;
  c.data = x;
  c.flops = 2.0 * static_cast<double>(tokens * width * width);
  c.heed = verified(
      name + ": heed", [x = x.get()] { x->layer.into(x->output, x->input); },
      [x] { return heed::view(x->output); }, expected, 1e-2);
  c.base = [x = x.get()] {
    plain_read(x->layer.weight.data(),
               static_cast<std::size_t>(x->layer.weight.size()) * sizeof(Eigen::bfloat16));
  };
  c.base_name = "read";
  c.goal = goal;
  return c;
}

void add_all() {
  const auto add_few_tokens = [](Index tokens, Goal goal) {
    add(join("linear/bfloat16/4096x4096/T", tokens),
        [tokens, goal](const std::string& name) { return few_tokens(name, tokens, 4096, goal); });
  };
  add_few_tokens(1, {Measure::base, .85});
  add_few_tokens(4, {Measure::base, .70});
  add_few_tokens(16, {Measure::peak, .40});
  for (const Index seq : {128, 512}) {
    add(join("multi_head/E512xH8/B4xS", seq),
        [seq](const std::string& name) { return make(name, 4, seq, 512, 8); });
  }
}

const Suite suite(add_all);

}  // namespace
}  // namespace heed_bench
