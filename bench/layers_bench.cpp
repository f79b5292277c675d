#include <heed/mlp.hpp>
#include <heed/norm.hpp>

#include "support.hpp"

namespace heed_bench {
namespace {

/// Rows (1, 1, rows, dim) into rows of the same shape.
struct Rows {
  Tensor<float, 4> from, by, to;

  Rows(Index rows, Index dim)
      : from(random<float, 4>({1, 1, rows, dim}, 1)),
        by(random<float, 4>({1, 1, rows, dim}, 2)),
        to(1, 1, rows, dim) {}

  void copy() {
    std::memcpy(to.data(), from.data(), static_cast<std::size_t>(from.size()) * sizeof(float));
    benchmark::ClobberMemory();
  }
};

/// f(row) in double, a row in double as well.
template <class F>
Expected by_rows(const Rows& x, const F& f) {
  Expected expected(1, 1, x.from.dimension(2), x.from.dimension(3));
  for (std::size_t row = 0; row < expected.rows.size(); ++row) {
    const Eigen::ArrayXd result = f(expected.rows[row]);
    for (Index c = 0; c < result.size(); ++c) {
      expected.values(0, 0, static_cast<Index>(row), c) = result(c);
    }
  }
  return expected;
}

Eigen::ArrayXd row_of(const Tensor<float, 4>& x, Index row) {
  return head(x, 0, 0).row(row).transpose().cast<double>().array();
}

Eigen::ArrayXd normalised(const Eigen::ArrayXd& x, bool centred, double eps) {
  const Eigen::ArrayXd y = x - (centred ? x.mean() : 0);
  return y / std::sqrt(y.square().mean() + eps);
}

/// The base is a copy of the same elements. Two sums, a difference, and products for squares, the
/// factor and the weight count as six operations for each element.
template <class Layer>
Case make_norm(const std::string& name, const Layer& layer, bool centred, Index rows, Index dim,
               double goal) {
  auto x = std::make_shared<Rows>(rows, dim);
  const Expected expected =
      by_rows(*x, [&](Index r) { return normalised(row_of(x->from, r), centred, layer.eps); });
  const auto check = [&](const char* who, const std::function<void()>& contender) {
    return verified(
        name + ": " + who, contender, [x] { return heed::view(x->to); }, expected, 1e-5);
  };
  Case c;
  c.data = x;
  c.flops = 6.0 * static_cast<double>(x->from.size());
  c.goal = {Measure::base, goal};
  c.base_name = "copy";
  c.base = [x = x.get()] { x->copy(); };
  c.heed = check("heed", [x = x.get(), layer] { layer.into(x->to, x->from); });
  c.eigen = check("Eigen", [x = x.get(), centred, eps = static_cast<float>(layer.eps)] {
    const auto from = head(x->from, 0, 0);
    auto to = head(x->to, 0, 0);
    for (Index r = 0; r < from.rows(); ++r) {
      to.row(r).array() = from.row(r).array() - (centred ? from.row(r).mean() : 0);
      to.row(r) *= 1 / std::sqrt(to.row(r).squaredNorm() / static_cast<float>(to.cols()) + eps);
    }
  });
  return c;
}

/// The base is the sum of the same elements, x and the gradient, written where the gradient of x
/// is.
template <class Layer>
Case make_norm_backward(const std::string& name, const Layer& layer, bool centred, Index rows,
                        Index dim, double goal) {
  auto x = std::make_shared<Rows>(rows, dim);
  const Expected expected = by_rows(*x, [&](Index r) {
    const Eigen::ArrayXd from = row_of(x->from, r), g = row_of(x->by, r),
                         y = normalised(from, centred, layer.eps);
    const Eigen::ArrayXd centred_from = from - (centred ? from.mean() : 0);
    return Eigen::ArrayXd((g - (centred ? g.mean() : 0) - y * (y * g).mean()) /
                          std::sqrt(centred_from.square().mean() + layer.eps));
  });
  Case c;
  c.data = x;
  c.flops = 14.0 * static_cast<double>(x->from.size());
  c.goal = {Measure::base, goal};
  c.base_name = "sum";
  c.base = [x = x.get()] {
    head(x->to, 0, 0) = head(x->from, 0, 0) + head(x->by, 0, 0);
    benchmark::ClobberMemory();
  };
  c.heed = verified(
      name + ": heed",
      [x = x.get(), layer, parameters = layer]() mutable {
        layer.backward_into(x->to, parameters, x->from, x->by);
      },
      [x] { return heed::view(x->to); }, expected, 1e-5);
  return c;
}

double activated(heed::Activation activation, double x) {
  switch (activation) {
    case heed::Activation::relu:
      return std::max(x, 0.0);
    case heed::Activation::gelu:
      return x * std::erfc(-x / std::sqrt(2.0)) / 2;
    case heed::Activation::gelu_tanh:
      return x / (1 + std::exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)));
    case heed::Activation::silu:
      return x / (1 + std::exp(-x));
  }
  return 0;
}

const char* text(heed::Activation activation) {
  switch (activation) {
    case heed::Activation::relu:
      return "relu";
    case heed::Activation::gelu:
      return "gelu";
    case heed::Activation::gelu_tanh:
      return "gelu_tanh";
    case heed::Activation::silu:
      return "silu";
  }
  return "";
}

/// From and to the second-level cache, where an Mlp applies it. One operation for each element.
Case make_activation(const std::string& name, heed::Activation activation, double goal) {
  auto x = std::make_shared<Rows>(64, 1024);
  const Expected expected = by_rows(*x, [&](Index r) {
    return Eigen::ArrayXd(
        row_of(x->from, r).unaryExpr([&](double z) { return activated(activation, z); }));
  });
  const auto check = [&](const char* who, const std::function<void()>& contender) {
    return verified(
        name + ": " + who, contender, [x] { return heed::view(x->to); }, expected, 1e-6);
  };
  Case c;
  c.data = x;
  c.flops = static_cast<double>(x->from.size());
  c.goal = {Measure::base, goal};
  c.base_name = "copy";
  c.base = [x = x.get()] { x->copy(); };
  heed::detail::with_activation("bench", activation, [&](auto function) {
    c.heed = check("heed", [x = x.get(), function] {
      heed::detail::activate_row<float>(function, x->from.data(), static_cast<float*>(nullptr),
                                        nullptr, nullptr, x->to.data(), x->from.size());
    });
  });
  if (activation == heed::Activation::silu) {
    c.eigen = check("Eigen", [x = x.get()] {
      const auto from = head(x->from, 0, 0).array();
      head(x->to, 0, 0).array() = from / (1 + (-from).exp());
    });
  }
  return c;
}

/// Two products, or three. The base is these alone; what is written with Eigen activates the hidden
/// layer in a pass of its own.
Case make_mlp(const std::string& name, const heed::MlpConfig& config, Index rows, double goal) {
  struct Data {
    heed::Mlp<float> mlp;
    Rows rows;
    Matrix<float> hidden, gate;
  };
  auto x =
      std::make_shared<Data>(Data{heed::Mlp<float>(config, 1), Rows(rows, config.dim), {}, {}});
  const auto& mlp = x->mlp;
  const auto wide = [](const heed::Linear<float>& linear) {
    return Matrix<double>(linear.weight.cast<double>());
  };
  const Matrix<double> up = wide(mlp.up_projection), down = wide(mlp.down_projection),
                       gate = wide(mlp.gate_projection);
  const Expected expected = by_rows(x->rows, [&](Index r) {
    const Eigen::VectorXd from = row_of(x->rows.from, r).matrix();
    Eigen::ArrayXd hidden = up * from;
    const Eigen::ArrayXd through = config.gated ? Eigen::ArrayXd(gate * from) : hidden;
    for (Index i = 0; i < hidden.size(); ++i) {
      const double by = activated(config.activation, through(i));
      hidden(i) = config.gated ? by * hidden(i) : by;
    }
    return Eigen::ArrayXd(down * hidden.matrix());
  });
  const auto check = [&](const char* who, const std::function<void()>& contender) {
    return verified(
        name + ": " + who, contender, [x] { return heed::view(x->rows.to); }, expected, 1e-4);
  };
  Case c;
  c.data = x;
  c.flops = (config.gated ? 6.0 : 4.0) * static_cast<double>(rows * config.dim * config.hidden_dim);
  c.goal = {Measure::base, goal};
  c.base_name = "products";
  x->hidden.resize(rows, config.hidden_dim);
  x->gate.resize(rows, config.hidden_dim);
  c.base = [x = x.get(), config] {
    const auto from = head(x->rows.from, 0, 0);
    if (config.gated) x->mlp.gate_projection.into(x->gate, from);
    x->mlp.up_projection.into(x->hidden, from);
    x->mlp.down_projection.into(head(x->rows.to, 0, 0), x->hidden);
  };
  c.heed = check("heed", [x = x.get()] { x->mlp.into(x->rows.to, x->rows.from); });
  c.eigen = check("Eigen", [x = x.get(), config] {
    const auto from = head(x->rows.from, 0, 0);
    x->hidden.noalias() = from * x->mlp.up_projection.weight.transpose();
    auto y = x->hidden.array();
    if (config.gated) {
      x->gate.noalias() = from * x->mlp.gate_projection.weight.transpose();
      y *= x->gate.array() / (1 + (-x->gate.array()).exp());
    } else {
      y = y / 2 * (1 + (0.7978845608F * (y + 0.044715F * y * y * y)).tanh());
    }
    head(x->rows.to, 0, 0).noalias() = x->hidden * x->mlp.down_projection.weight.transpose();
  });
  return c;
}

void add_all() {
  for (const Index dim : {384, 768, 4096}) {
    const Index rows = 768 * 1024 / dim;
    const std::string size = join("/R", rows, "xD", dim);
    add("norm/layer" + size, [=](const std::string& name) {
      return make_norm(name, heed::LayerNorm<float>(dim), true, rows, dim, .6);
    });
    add("norm/rms" + size, [=](const std::string& name) {
      return make_norm(name, heed::RmsNorm<float>(dim), false, rows, dim, .6);
    });
    add("norm/layer_backward" + size, [=](const std::string& name) {
      return make_norm_backward(name, heed::LayerNorm<float>(dim), true, rows, dim, .4);
    });
  }
  for (const auto activation : {heed::Activation::relu, heed::Activation::gelu,
                                heed::Activation::gelu_tanh, heed::Activation::silu}) {
    add(join("activation/", text(activation), "/64Ki"), [=](const std::string& name) {
      return make_activation(name, activation, activation == heed::Activation::relu ? .6 : .1);
    });
  }
  const auto mlp = [](Index rows, Index dim, Index hidden, bool gated, double goal) {
    const heed::MlpConfig config{
        .dim = dim,
        .hidden_dim = hidden,
        .activation = gated ? heed::Activation::silu : heed::Activation::gelu_tanh,
        .gated = gated,
        .bias = false};
    add(join("mlp/", gated ? "gated_silu" : "gelu_tanh", "/R", rows, "xD", dim, "xH", hidden),
        [=](const std::string& name) { return make_mlp(name, config, rows, goal); });
  };
  mlp(512, 384, 1536, false, .9);
  mlp(512, 768, 3072, false, .9);
  mlp(512, 576, 1536, true, .9);
}

const Suite suite(add_all);

}  // namespace
}  // namespace heed_bench
