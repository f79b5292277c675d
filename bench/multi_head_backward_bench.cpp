#include <heed/multi_head_attention.hpp>

#include "support.hpp"

namespace heed_bench {
namespace {

/// Self-attention and its gradient by Eigen's products, all weights of a head kept from the forward
/// pass. Tensors are (batch * seq, embed).
template <class Scalar>
struct EigenLayer {
  using M = Matrix<Scalar>;
  Index batch, seq, heads;
  M wq, wk, wv, wo, x;        // parameters and input
  M q, k, v, joined, output;  // of the forward pass
  std::vector<M> weights;     // of each (batch, head)
  M dq, dk, dv, djoined, dx;  // gradients
  M dwq, dwk, dwv, dwo, dp, ds;

  auto block(M& whole, Index b, Index h) const {
    const Index dim = whole.cols() / heads;
    return whole.block(b * seq, h * dim, seq, dim);
  }

  void forward() {
    q.noalias() = x * wq.transpose();
    k.noalias() = x * wk.transpose();
    v.noalias() = x * wv.transpose();
    joined.resize(x.rows(), x.cols());
    weights.resize(static_cast<std::size_t>(batch * heads));
    const Scalar scale = 1 / std::sqrt(static_cast<Scalar>(x.cols() / heads));
    for (Index b = 0; b < batch; ++b) {
      for (Index h = 0; h < heads; ++h) {
        M& p = weights[static_cast<std::size_t>(b * heads + h)];
        p.noalias() = block(q, b, h) * block(k, b, h).transpose();
        for (Index i = 0; i < seq; ++i) {
          auto row = p.row(i).array();
          row = ((row - row.maxCoeff()) * scale).exp();
          row /= row.sum();
        }
        block(joined, b, h).noalias() = p * block(v, b, h);
      }
    }
    output.noalias() = joined * wo.transpose();
  }

  void backward(const Eigen::Ref<const M>& dy) {
    djoined.noalias() = dy * wo;
    dwo.noalias() = dy.transpose() * joined;
    for (M* gradient : {&dq, &dk, &dv}) gradient->resize(x.rows(), x.cols());
    const Scalar scale = 1 / std::sqrt(static_cast<Scalar>(x.cols() / heads));
    for (Index b = 0; b < batch; ++b) {
      for (Index h = 0; h < heads; ++h) {
        const M& p = weights[static_cast<std::size_t>(b * heads + h)];
        const auto grad = block(djoined, b, h);
        block(dv, b, h).noalias() = p.transpose() * grad;
        dp.noalias() = grad * block(v, b, h).transpose();
        ds.resize(seq, seq);
        for (Index i = 0; i < seq; ++i) {
          const Scalar mean = p.row(i).dot(dp.row(i));
          ds.row(i) = (p.row(i).array() * (dp.row(i).array() - mean) * scale).matrix();
        }
        block(dq, b, h).noalias() = ds * block(k, b, h);
        block(dk, b, h).noalias() = ds.transpose() * block(q, b, h);
      }
    }
    dwq.noalias() = dq.transpose() * x;
    dwk.noalias() = dk.transpose() * x;
    dwv.noalias() = dv.transpose() * x;
    dx.noalias() = dq * wq;
    dx.noalias() += dk * wk;
    dx.noalias() += dv * wv;
  }
};

using Module = heed::MultiHeadAttention<float>;
using Input = Tensor<float, 3>;
using Pass = decltype(std::declval<const Module&>().forward(
    std::declval<const Input&>(), std::declval<const Input&>(), std::declval<const Input&>()));

struct Layer {
  Module module;
  Input input, grad_output, grad_input;  // (batch, seq, embed)
  Pass pass;
  EigenLayer<float> eigen;

  Layer(Index batch, Index seq, Index embed, Index heads)
      : module({.embed_dim = embed, .num_heads = heads}, 1),
        input(random<float, 3>({batch, seq, embed}, 1)),
        grad_output(random<float, 3>({batch, seq, embed}, 2)),
        grad_input(batch, seq, embed),
        pass(module.forward(input, input, input)),
        eigen(eigen_layer<float>(heads)) {}

  template <class T>
  static auto rows(T& x) {
    using Plain = std::conditional_t<std::is_const_v<T>, const Matrix<float>, Matrix<float>>;
    return Eigen::Map<Plain>(x.data(), x.dimension(0) * x.dimension(1), x.dimension(2));
  }

  template <class Scalar>
  EigenLayer<Scalar> eigen_layer(Index heads) const {
    EigenLayer<Scalar> result;
    result.batch = input.dimension(0);
    result.seq = input.dimension(1);
    result.heads = heads;
    result.wq = module.query_projection.weight.cast<Scalar>();
    result.wk = module.key_projection.weight.cast<Scalar>();
    result.wv = module.value_projection.weight.cast<Scalar>();
    result.wo = module.output_projection.weight.cast<Scalar>();
    result.x = rows(input).template cast<Scalar>();
    result.forward();
    return result;
  }
};

Case make(const std::string& name, Index batch, Index seq, Index embed, Index heads) {
  auto x = std::make_shared<Layer>(batch, seq, embed, heads);
  auto exact = x->eigen_layer<double>(heads);
  exact.backward(Layer::rows(x->grad_output).cast<double>());
  Expected expected(batch, 1, seq, embed);
  for (Index b = 0; b < batch; ++b) {
    for (std::size_t row = 0; row < expected.rows.size(); ++row) {
      for (Index d = 0; d < embed; ++d) {
        expected.values(b, 0, static_cast<Index>(row), d) =
            exact.dx(b * seq + expected.rows[row], d);
      }
    }
  }
  const auto check = [&](const char* who, const std::function<void()>& run) {
    return verified(
        name + ": " + who, run, [x] { return heed::split_heads(x->grad_input, 1); }, expected,
        1e-3);
  };

  Case c;
  c.data = x;
  c.heed = check("heed", [x = x.get()] {
    const auto gradients = x->module.backward(x->pass, x->grad_output);
    x->grad_input = gradients.query + gradients.key + gradients.value;
  });
  c.eigen = check("Eigen", [x = x.get()] {
    x->eigen.backward(Layer::rows(x->grad_output));
    Layer::rows(x->grad_input) = x->eigen.dx;
  });

  // Eight matmuls at .88 of the peak and the attention at .60 or .80, and a tenth of the time for
  // what is allocated and written once.
  const double matmuls = 16.0 * static_cast<double>(batch * seq * embed * embed),
               attention = 10.0 * static_cast<double>(batch * seq * seq * embed);
  c.flops = matmuls + attention;
  c.goal = {Measure::peak, c.flops / (matmuls / .88 + attention / (seq < 512 ? .60 : .80)) / 1.10,
            true};
  return c;
}

void add_all() {
  for (const Index seq : {128, 512}) {
    add(join("multi_head/backward/E512xH8/B4xS", seq),
        [seq](const std::string& name) { return make(name, 4, seq, 512, 8); });
  }
}

const Suite suite(add_all);

}  // namespace
}  // namespace heed_bench
