#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "heed/additive_attention.hpp"
#include "heed/cache.hpp"
#include "heed/embedding.hpp"
#include "heed/linear.hpp"
#include "heed/mlp.hpp"
#include "heed/multi_head_attention.hpp"
#include "heed/norm.hpp"
#include "heed/transformer_block.hpp"
#include "support.hpp"

/// Weights are public and come from files: every parameter of every module is given every shape
/// that it must not have, and every call is made. All of them refuse, in the name of the module and
/// with the member's, before anything is written.
namespace heed::test {
namespace {

constexpr Index dim = 8;

/// The wrong shapes of a parameter.
std::vector<std::pair<Index, Index>> other_shapes(Index rows, Index cols, bool vector) {
  std::vector<std::pair<Index, Index>> shapes{
      {0, 0}, {1, 1}, {rows + 1, cols}, {rows - 1, cols}, {2 * rows + 64, cols}};
  if (!vector) {
    shapes.insert(
        shapes.end(),
        {{rows, cols + 1}, {rows, cols - 1}, {rows, 0}, {0, cols}, {rows, 2 * cols + 64}});
  }
  std::erase_if(shapes, [&](const auto& shape) {
    return shape == std::pair(rows, cols) || shape.first < 0 || shape.second < 0 ||
           (vector && shape.first == rows);
  });
  return shapes;
}

/// What a refusal calls a parameter: by its projection, its scale or its norm of heads. Norms of
/// layers and weights of scores are told by their numbers.
std::string name_of(const std::string& parameter) {
  for (std::size_t begin = 0, end; begin < parameter.size(); begin = end + 1) {
    end = std::min(parameter.find('.', begin), parameter.size());
    const std::string part = parameter.substr(begin, end - begin);
    if (part.ends_with("_projection") || part.ends_with("_scale") || part == "query_norm" ||
        part == "key_norm") {
      return part;
    }
  }
  return "";
}

/// calls(module, refused) hands each call of the module to refused(its name, f). A bias may be
/// absent, and a member with one of `unused` in its name belongs to nothing that the module has.
/// Where the input alone says how many columns a weight has, that is left to Linear.
template <class Module, class Calls>
void expect_refused(const std::string& module_name, const Module& good, const Calls& calls,
                    const std::vector<std::string>& unused = {}, bool columns_by_input = false) {
  Module module = good;
  std::string path, changed, shape;
  bool by_input = false;
  const auto in_name = [&](const std::string& part) {
    return changed.find(part) != std::string::npos;
  };
  const auto call_all = [&] {
    calls(module, [&](const std::string& name, const auto& call) {
      std::string by = module_name, what = name_of(changed);
      if (changed.starts_with("cross_attention")) {
        if (name == "backward") by = "MultiHeadAttention::backward";
        if (name.ends_with("cache")) by = "MultiHeadAttention::cross";
      }
      if (by_input) {
        by = name == "backward" ? module_name + "::backward" : "Linear";
        what = name != "backward" ? "" : what == "query_projection" ? " a query " : " a key ";
      }
      EXPECT_TRUE(refuses(call, {"heed::" + by, what}))
          << name << ", " << changed << " of shape " << shape;
    });
  };
  detail::walk_parameters(
      path,
      [&](std::string_view name, auto& parameter) {
        using Parameter = std::remove_cvref_t<decltype(parameter)>;
        constexpr bool vector = Parameter::ColsAtCompileTime == 1;
        const Parameter before = parameter;
        changed = name;
        if (std::any_of(unused.begin(), unused.end(), in_name)) return;
        for (const auto& [rows, cols] : other_shapes(before.rows(), before.cols(), vector)) {
          if (rows * cols == 0 && name.ends_with("bias")) continue;
          by_input = columns_by_input && rows == before.rows();
          shape = "(" + std::to_string(rows) + ", " + std::to_string(cols) + ")";
          parameter = Parameter::Constant(rows, vector ? 1 : cols, .5F);
          call_all();
        }
        parameter = before;
      },
      module);
  // What has been moved from has no weights.
  module = good;
  const Module taken = std::move(module);
  changed = "everything", shape = "nothing", by_input = false;
  call_all();
}

const Tensor<float, 3> x = make<float, 3>(random({2, 1, 5, dim}, 1));

TEST(HostileWeights, MultiHeadAttention) {
  for (const bool norms : {false, true}) {
    const MultiHeadAttention<float> good(
        {.embed_dim = dim, .num_heads = 4, .num_kv_heads = 2, .bias = true, .qk_norm = norms});
    const auto pass = good.forward(x, x, x, causal());
    KeyValueCache<float> cache(
        {.batch = 2, .kv_heads = 2, .key_dim = 2, .value_dim = 2, .capacity = 20});
    good.remember(cache, x, x);
    const Reference nothing = constant({2, 1, 5, dim}, 7);
    Tensor<float, 3> out = make<float, 3>(nothing);
    expect_refused("MultiHeadAttention", good, [&](const auto& module, const auto& refused) {
      refused("operator()", [&] { module(x, x, x); });
      refused("into", [&] { module.into(out, x, x, x, causal()); });
      refused("forward", [&] { module.forward(x, x, x); });
      refused("forward_with_weights", [&] { module.forward_with_weights(x, x, x); });
      refused("backward", [&] { module.backward(pass, x); });
      refused("a cache", [&] { module(x, cache); });
      refused("into of a cache", [&] { module.into(out, x, cache); });
      refused("remember", [&] { module.remember(cache, x, x); });
      refused("cross", [&] { module.cross(x, cache); });
      refused("cross_into", [&] { module.cross_into(out, x, cache); });
    });
    EXPECT_TRUE(same(reference(out), nothing));
    EXPECT_EQ(cache.length(0), 5);
  }
}

TEST(HostileWeights, AdditiveAttention) {
  const AdditiveAttention<float> good(dim, dim, 3);
  const auto pass = good.forward(x, x, x);
  const Reference nothing = constant({2, 1, 5, dim}, 7);
  Tensor<float, 3> out = make<float, 3>(nothing);
  const auto calls = [&](const auto& module, const auto& refused) {
    refused("operator()", [&] { module(x, x, x); });
    refused("into", [&] { module.into(out, x, x, x); });
    refused("forward", [&] { module.forward(x, x, x); });
    refused("forward_with_weights", [&] { module.forward_with_weights(x, x, x); });
    refused("backward", [&] { module.backward(pass, x); });
  };
  expect_refused("AdditiveAttention", good, calls, {}, true);
  EXPECT_TRUE(same(reference(out), nothing));
}

// Any number of rows is a number of outputs.
TEST(HostileWeights, Linear) {
  const Linear<float> good{Matrix<float>::Zero(dim, dim), Vector<float>::Zero(dim)};
  const Reference nothing = constant({2, 1, 5, dim}, 7);
  Tensor<float, 3> out = make<float, 3>(nothing);
  Linear<float> parameters;
  const auto expect = [&](const Linear<float>& layer, const std::string& what) {
    EXPECT_TRUE(refuses([&] { layer(x); }, {"heed::Linear", what}));
    EXPECT_TRUE(refuses([&] { layer.into(out, x); }, {"heed::Linear", what}));
    EXPECT_TRUE(refuses([&] { layer.backward(x, x); }, {"heed::Linear::backward", what}));
    EXPECT_TRUE(refuses([&] { layer.backward_into(out, parameters, x, x); },
                        {"heed::Linear::backward", what}));
  };
  for (const auto& [rows, cols] : other_shapes(dim, dim, false)) {
    Linear<float> layer = good;
    layer.weight = Matrix<float>::Zero(rows, cols);
    expect(layer, cols == dim ? "the bias has 8 entries" : "x has 8 features");
  }
  for (const auto& [rows, cols] : other_shapes(dim, 1, true)) {
    if (rows == 0) continue;  // none
    Linear<float> layer = good;
    layer.bias = Vector<float>::Zero(rows);
    expect(layer, "the bias has " + std::to_string(rows) + " entries");
  }
  EXPECT_EQ(parameters.weight.size(), 0);
  EXPECT_TRUE(same(reference(out), nothing));
}

template <class Layer>
void expect_layer_refuses(const std::string& name, const Layer& good,
                          const std::vector<std::string>& unused = {}) {
  const auto pass = good.forward(x);
  const Reference nothing = constant({2, 1, 5, dim}, 7);
  Tensor<float, 3> out = make<float, 3>(nothing);
  expect_refused(
      name, good,
      [&](const auto& module, const auto& refused) {
        refused("operator()", [&] { module(x); });
        refused("into", [&] { module.into(out, x); });
        refused("forward", [&] { module.forward(x); });
        refused("backward", [&] { module.backward(pass, x); });
      },
      unused);
  EXPECT_TRUE(same(reference(out), nothing));
}

TEST(HostileWeights, LayersOfOneInput) {
  expect_layer_refuses("LayerNorm", LayerNorm<float>(dim));
  expect_layer_refuses("RmsNorm", RmsNorm<float>(dim));
  expect_layer_refuses("Mlp", Mlp<float>({.dim = dim, .hidden_dim = 12, .gated = true}));
  expect_layer_refuses("Mlp", Mlp<float>({.dim = dim, .hidden_dim = 12}), {"gate_projection"});
}

TEST(HostileWeights, TransformerBlock) {
  for (const bool scale : {false, true}) {
    const TransformerBlock<float> good({.attention = {.embed_dim = dim, .num_heads = 4},
                                        .mlp = {.dim = dim, .hidden_dim = 12},
                                        .layer_scale = scale});
    const auto pass = good.forward(x);
    KeyValueCache<float> cache(
        {.batch = 2, .kv_heads = 4, .key_dim = 2, .value_dim = 2, .capacity = 20});
    const Reference nothing = constant({2, 1, 5, dim}, 7);
    Tensor<float, 3> out = make<float, 3>(nothing);
    expect_refused("TransformerBlock", good,
                   [&](const auto& module, const auto& refused) {
                     refused("operator()", [&] { module(x); });
                     refused("into", [&] { module.into(out, x, causal()); });
                     refused("forward", [&] { module.forward(x); });
                     refused("backward", [&] { module.backward(pass, x); });
                     refused("a cache", [&] { module(x, cache); });
                     refused("into of a cache", [&] { module.into(out, x, cache); });
                   },
                   {"gate_projection", "cross_"});
    EXPECT_TRUE(same(reference(out), nothing));
    EXPECT_EQ(cache.length(0), 0);
  }
}

TEST(HostileWeights, TransformerBlockWithCross) {
  const TransformerBlock<float> good({.attention = {.embed_dim = dim, .num_heads = 4},
                                      .mlp = {.dim = dim, .hidden_dim = 12, .gated = true},
                                      .layer_scale = true,
                                      .cross = true});
  const auto pass = good.forward(x, x);
  KeyValueCache<float> cache(
      {.batch = 2, .kv_heads = 4, .key_dim = 2, .value_dim = 2, .capacity = 20});
  auto memory = cache;
  good.cross_attention.remember(memory, x, x);
  const Reference nothing = constant({2, 1, 5, dim}, 7);
  Tensor<float, 3> out = make<float, 3>(nothing);
  expect_refused("TransformerBlock", good, [&](const auto& module, const auto& refused) {
    refused("operator()", [&] { module(x, x); });
    refused("into", [&] { module.into(out, x, x); });
    refused("forward", [&] { module.forward(x, x); });
    refused("backward", [&] { module.backward(pass, x); });
    refused("a cache", [&] { module(x, cache, memory); });
    refused("into of a cache", [&] { module.into(out, x, cache, memory); });
  });
  EXPECT_TRUE(same(reference(out), nothing));
  EXPECT_EQ(cache.length(0), 0);
}

// The table may have any shape; an id that it has no row for is refused.
TEST(HostileWeights, Embedding) {
  Embedding<float> embedding(10, dim);
  const std::vector<int> ids{3, 9, 4};
  const auto pass = embedding.forward(ids);
  for (const auto& [rows, cols] : other_shapes(10, dim, false)) {
    if (rows >= 10 && cols > 0) continue;
    embedding.weight = Matrix<float>::Zero(rows, cols);
    if (rows < 10) {
      EXPECT_TRUE(refuses([&] { embedding(ids); }, {"heed::Embedding"}));
      EXPECT_TRUE(refuses([&] { embedding.forward(ids); }, {"heed::Embedding"}));
    }
    EXPECT_TRUE(refuses([&] { embedding.backward(pass, pass.output); }, {"heed::Embedding"}));
  }
}

}  // namespace
}  // namespace heed::test
