#include "heed/transformer_block.hpp"

#include <unsupported/Eigen/CXX11/ThreadPool>

#include "allocation_support.hpp"
#include "heed/cache.hpp"
#include "heed/mask.hpp"
#include "module_support.hpp"

namespace heed::test {
namespace {

// One token attends to itself alone: with projections that change nothing, both branches give what
// they read. x = (1, 7) has mean square 25 and norm (.2, 1.4). Norm first: (1, 7) + (.2, 1.4) =
// (1.2, 8.4), whose norm is the same, (1.4, 9.8). Norm last: (1, 7) + (1, 7) becomes (.2, 1.4), and
// twice that again.
TEST(TransformerBlock, ByHand) {
  for (const bool first : {true, false}) {
    TransformerBlock<double> block({.attention = {.embed_dim = 2},
                                    .mlp = {.hidden_dim = 2, .activation = Activation::relu},
                                    .norm = Norm::rms,
                                    .pre_norm = first,
                                    .layer_scale = true});
    block.attention_norm.eps = block.mlp_norm.eps = 0;
    for_each_parameter(block, [](std::string_view name, auto& value) {
      if (name.ends_with("projection.weight")) value.setIdentity();
      if (name.ends_with("scale")) value.setOnes();
    });
    Matrix<double> x(1, 2), y(1, 2);
    x << 1, 7;
    y << (first ? 1.4 : .2), (first ? 9.8 : 1.4);
    EXPECT_TRUE(near(reference(block(x)), reference(y), 1e-14));
    // Ten times the first branch, none of the second: (3, 21), and last its norm.
    block.attention_scale.setConstant(10);
    block.mlp_scale.setZero();
    y << (first ? 3 : .2), (first ? 21 : 1.4);
    EXPECT_TRUE(near(reference(block(x)), reference(y), 1e-14));
  }
}

Reference sum(const Reference& a, const Reference& b) { return a + b; }

template <class Scalar>
Reference normed(const AnyNorm<Scalar>& norm, const Reference& x) {
  const auto width = static_cast<double>(x.dimension(3));
  return generate(x.dimensions(), [&](Index b, Index h, Index i, Index c) {
    double mean = 0, square = 0;
    for (Index d = 0; norm.kind == Norm::layer && d < x.dimension(3); ++d) {
      mean += x(b, h, i, d) / width;
    }
    for (Index d = 0; d < x.dimension(3); ++d) {
      square += (x(b, h, i, d) - mean) * (x(b, h, i, d) - mean) / width;
    }
    return (x(b, h, i, c) - mean) / std::sqrt(square + norm.eps) * number(norm.weight(c)) +
           (norm.bias.size() > 0 ? number(norm.bias(c)) : 0);
  });
}

template <class Scalar, class Allowed>
Reference attended(const MultiHeadAttention<Scalar>& module, const Reference& x,
                   const Reference& memory, const Allowed& allowed) {
  const auto& c = module.config();
  const auto answer =
      attend<double>(split(projected(module.query_projection, x), c.num_heads),
                     split(projected(module.key_projection, memory), c.num_kv_heads),
                     split(projected(module.value_projection, memory), c.num_kv_heads),
                     scaled_dot(), allowed, [](auto...) { return 1.0; });
  return projected(module.output_projection, merged(answer.output));
}

template <class Scalar>
Reference fed(const Mlp<Scalar>& mlp, const Reference& x) {
  Reference hidden = projected(mlp.up_projection, x);
  const auto silu = [](double z) { return z / (1 + std::exp(-z)); };
  const Reference gate = mlp.config().gated ? projected(mlp.gate_projection, x) : hidden;
  for (Index n = 0; n < hidden.size(); ++n) {
    double& y = hidden.data()[n];
    y = mlp.config().gated ? silu(gate.data()[n]) * y : silu(y);
  }
  return projected(mlp.down_projection, hidden);
}

/// The block by its definition, in double.
template <class Scalar, class Allowed>
Reference answer(const TransformerBlock<Scalar>& block, Reference x, const Reference& memory,
                 const Allowed& allowed) {
  const auto& c = block.config();
  const auto branch = [&](const auto& norm, const auto& scale, const auto& f) {
    Reference change = f(c.pre_norm ? normed(norm, x) : x);
    if (scale.size() > 0) {
      for_each_index(change.dimensions(), [&](Index b, Index h, Index i, Index d) {
        change(b, h, i, d) *= number(scale(d));
      });
    }
    x = sum(x, change);
    if (!c.pre_norm) x = normed(norm, x);
  };
  branch(block.attention_norm, block.attention_scale,
         [&](const Reference& y) { return attended(block.attention, y, y, allowed); });
  if (c.cross) {
    branch(block.cross_norm, block.cross_scale, [&](const Reference& y) {
      return attended(block.cross_attention, y, memory, everything());
    });
  }
  branch(block.mlp_norm, block.mlp_scale, [&](const Reference& y) { return fed(block.mlp, y); });
  return x;
}

/// Every kind of block, small: width 12 in heads of 4, grouped.
std::vector<BlockConfig> kinds() {
  std::vector<BlockConfig> result;
  for (const bool pre : {true, false}) {
    for (const bool cross : {false, true}) {
      result.push_back(
          {.attention = {.embed_dim = 12, .num_heads = 3, .num_kv_heads = 1, .bias = true},
           .mlp = {.hidden_dim = 10, .activation = Activation::silu, .gated = cross},
           .norm = pre == cross ? Norm::layer : Norm::rms,
           .pre_norm = pre,
           .layer_scale = cross,
           .cross = cross,
           .norm_eps = 1e-3,
           .initial_scale = .5});
    }
  }
  return result;
}

std::string text(const BlockConfig& c) {
  return std::string(c.pre_norm ? "pre" : "post") + (c.cross ? " cross" : "") +
         (c.norm == Norm::layer ? " layer" : " rms");
}

/// With all parameters away from the zeros and ones that they start at.
template <class Scalar>
TransformerBlock<Scalar> block_of(const BlockConfig& config, std::uint64_t seed = 4) {
  TransformerBlock<Scalar> block(config, seed);
  for_each_parameter(block, [&](std::string_view name, auto& value) {
    if (name.ends_with("projection.weight")) return;
    const Reference more = random({1, 1, value.size(), 1}, ++seed, .3);
    for (Index i = 0; i < value.size(); ++i) {
      value.data()[i] = rounded<Scalar>(number(value.data()[i]) + more(0, 0, i, 0));
    }
  });
  return block;
}

template <class Block, class X, class Memory, class M>
auto apply(const Block& block, const X& x, const Memory& memory, const M& mask,
           const AttentionOptions& options = {}) {
  return block.config().cross ? block(x, memory, mask, no_mask(), options)
                              : block(x, mask, options);
}

template <class Scalar, class Weight, int Rank, int Order>
void expect_block(const BlockConfig& config, const Shape& shape, double bound) {
  SCOPED_TRACE(text(config) + " of " + test::text(shape));
  const auto block = block_of<Weight>(config);
  const Reference x = rounded<Scalar>(random(shape, 1)),
                  memory = rounded<Scalar>(random({shape[0], 1, 7, 12}, 2));
  const auto given = make<Scalar, Rank, Order>(x);
  const auto held = make<Scalar, Rank, Order>(memory);
  const auto result = apply(block, given, held, causal());
  static_assert(std::is_same_v<detail::ScalarOf<decltype(result)>, Scalar>);
  EXPECT_TRUE(near(reference(result),
                   answer(block, x, memory, [](Index, Index, Index i, Index j) { return j <= i; }),
                   bound));
  const auto output = config.cross ? block.forward(given, held, causal()).output
                                   : block.forward(given, causal()).output;
  EXPECT_TRUE(near(reference(output), reference(result), bound / 4));
}

TEST(TransformerBlock, OfEveryKind) {
  for (const auto& config : kinds()) {
    expect_block<double, double, 3, Eigen::RowMajor>(config, {2, 1, 5, 12}, 1e-12);
    expect_block<float, float, 3, Eigen::ColMajor>(config, {2, 1, 37, 12}, 2e-5);
    expect_block<float, Eigen::bfloat16, 2, Eigen::RowMajor>(config, {1, 1, 3, 12}, 2e-5);
  }
}

// The block hands its options and its masks on, and to a rotation the place in the sequence.
TEST(TransformerBlock, IsMadeOfItsParts) {
  BlockConfig config = kinds()[0];
  config.attention.rotary = RotaryConfig{.layout = RotaryLayout::interleaved};
  config.attention.qk_norm = true;
  const auto block = block_of<float>(config);
  Eigen::ThreadPool pool(2);
  const AttentionOptions options{.dropout = .25, .seed = 9, .pool = &pool};
  const auto x = make<float, 3>(random({2, 1, 30, 12}, 1));
  const auto mask = sliding_window(6, 0) && valid_lens({20, 30});
  const auto n = block.attention_norm(x);
  Tensor<float, 3> y = x + block.attention(n, n, n, mask, options);
  y = y + block.mlp(block.mlp_norm(y));
  EXPECT_TRUE(near(reference(block(x, mask, options)), reference(y), 1e-5));
}

TEST(TransformerBlock, InPlaceAndIntoAView) {
  for (const auto& config : kinds()) {
    if (config.cross) continue;
    const auto block = block_of<float>(config);
    const Reference numbers = random({2, 1, 9, 12}, 1);
    auto x = make<float, 3>(numbers);
    const auto expected = block(x, causal());
    block.into(x, x, causal());
    EXPECT_TRUE(same(reference(x), reference(expected)));
    Scattered<float> from(numbers, {3}), to(numbers, {0});
    const auto squeezed = [](const View<float, 4>& all) {
      return View<float, 3>{all.data,
                            {all.shape[0], all.shape[2], all.shape[3]},
                            {all.strides[0], all.strides[2], all.strides[3]}};
    };
    const Index written = to.written();
    block.into(squeezed(to.view()), squeezed(from.view()), causal());
    EXPECT_EQ(to.written(), written);
    EXPECT_TRUE(near(reference(to.view()), reference(expected), 1e-5));
  }
}

TEST(TransformerBlock, GivesTheSameForAnyNumberOfThreads) {
  Eigen::ThreadPool pool(3);
  for (const auto& config : kinds()) {
    const auto block = block_of<float>(config);
    const auto x = make<float, 3>(random({3, 1, 150, 12}, 1)),
               memory = make<float, 3>(random({3, 1, 20, 12}, 2));
    EXPECT_TRUE(same(reference(apply(block, x, memory, causal(), {.pool = &pool})),
                     reference(apply(block, x, memory, causal()))));
  }
}

TEST(TransformerBlock, OfNothing) {
  const auto block = block_of<float>(kinds()[0]);
  EXPECT_EQ(block(Matrix<float>(0, 12)).cols(), 12);
  EXPECT_EQ(block(Tensor<float, 3>(0, 4, 12)).size(), 0);
  const Tensor<float, 3> empty(2, 0, 12);
  EXPECT_EQ(block.backward(block.forward(empty), empty).input.size(), 0);
}

// A memory without keys adds nothing but the output projection's bias.
TEST(TransformerBlock, OfAMemoryOfNothing) {
  const auto block = block_of<float>(kinds()[1]);
  const auto x = make<float, 3>(random({2, 1, 4, 12}, 1));
  EXPECT_TRUE(near(reference(block(x, Tensor<float, 3>(2, 0, 12))),
                   answer(block, random({2, 1, 4, 12}, 1), Reference(2, 1, 0, 12), everything()),
                   2e-5));
}

TEST(TransformerBlock, RefusesWhatDoesNotFit) {
  auto block = block_of<float>(kinds()[1]);
  const auto plain = block_of<float>(kinds()[0]);
  auto x = make<float, 3>(random({2, 1, 4, 12}, 1));
  const auto memory = make<float, 3>(random({2, 1, 5, 12}, 1));
  const auto before = reference(x);
  const auto refused = [&](std::initializer_list<std::string> parts) {
    return refuses([&] { block.into(x, x, memory, causal()); }, parts);
  };
  EXPECT_TRUE(refuses([&] { block(x); }, {"heed::TransformerBlock", "memory"}));
  EXPECT_TRUE(refuses([&] { plain(x, memory); }, {"heed::TransformerBlock", "memory"}));
  EXPECT_TRUE(
      refuses([&] { block(x, Tensor<float, 3>(3, 5, 12)); }, {"heed::TransformerBlock", "3"}));
  EXPECT_TRUE(
      refuses([&] { plain(Matrix<float>(3, 11)); }, {"heed::TransformerBlock", "11", "12"}));
  EXPECT_TRUE(refuses([&] { block.into(x, x, memory, causal(), valid_lens({1, 2, 3})); },
                      {"heed::TransformerBlock", "3", "2"}));
  EXPECT_TRUE(refuses([&] { block.into(x, memory, x); }, {"heed::TransformerBlock"}));
  block.mlp_norm.weight.resize(5);
  EXPECT_TRUE(refused({"heed::TransformerBlock", "5", "12"}));
  block.mlp_norm.weight.setOnes(12);
  block.mlp_scale.resize(7);
  EXPECT_TRUE(refused({"heed::TransformerBlock", "mlp_scale", "7", "12"}));
  block.mlp_scale.setOnes(12);
  block.mlp.down_projection.weight.resize(3, 3);
  EXPECT_TRUE(refused({"heed::TransformerBlock", "down_projection", "(3, 3)"}));
  block.mlp = TransformerBlock<float>(kinds()[1]).mlp;
  block.cross_attention.key_projection.weight.resize(1, 1);
  EXPECT_TRUE(refused({"heed::TransformerBlock", "key_projection", "(1, 1)"}));
  EXPECT_TRUE(same(reference(x), before)) << "written before it was refused";
  const auto pass = plain.forward(x);
  EXPECT_TRUE(
      refuses([&] { plain.backward(pass, memory); }, {"TransformerBlock::backward", "4", "5"}));
  const auto config = [](auto change) {
    BlockConfig result = kinds()[1];
    change(result);
    return [result] { const TransformerBlock<float> unused(result); };
  };
  EXPECT_TRUE(refuses(config([](BlockConfig& c) { c.mlp.dim = 8; }), {"8", "12"}));
  EXPECT_TRUE(refuses(config([](BlockConfig& c) { c.attention.key_dim = 8; }), {"8", "12"}));
  EXPECT_TRUE(
      refuses(config([](BlockConfig& c) { c.cross_attention.embed_dim = 8; }), {"8", "12"}));
  EXPECT_TRUE(
      refuses([] { TransformerBlock<float>()(Matrix<float>(1, 1)); }, {"no configuration"}));
}

TEST(TransformerBlock, NamesItsParametersAndTellsPartsApart) {
  const TransformerBlock<float> block(kinds()[1], 3), again(kinds()[1], 3), other(kinds()[1], 4);
  std::vector<std::string> names;
  for_each_parameter(block, [&](std::string_view name, const auto&) { names.emplace_back(name); });
  for (const char* name : {"attention_norm.weight", "attention.query_projection.weight",
                           "attention_scale", "cross_attention.output_projection.bias",
                           "mlp.gate_projection.weight", "mlp_norm.weight"}) {
    EXPECT_EQ(std::count(names.begin(), names.end(), name), 1) << name;
  }
  EXPECT_EQ(block.mlp.up_projection.weight, again.mlp.up_projection.weight);
  EXPECT_NE(block.mlp.up_projection.weight, other.mlp.up_projection.weight);
  EXPECT_NE(block.attention.query_projection.weight, block.cross_attention.query_projection.weight);
  EXPECT_EQ(block.attention_scale(3), .5f);
  EXPECT_EQ((TransformerBlock<float>({.attention = {.embed_dim = 4}}).mlp.config().hidden_dim), 16);
}

// ---------------------------------------------------------------- backward

template <class M>
void expect_block_slopes(const BlockConfig& config, const M& mask) {
  SCOPED_TRACE(text(config));
  auto block = block_of<double>(config);
  auto x = make<double, 3>(random({2, 1, 3, 12}, 1));
  const Index width = config.cross_attention.key_dim == 0 ? 12 : config.cross_attention.key_dim;
  auto memory = make<double, 3>(random({2, 1, 4, width}, 2));
  const Reference weights = random({2, 1, 3, 12}, 3);
  const auto grad = make<double, 3>(weights);
  const auto loss = [&] { return weighted(apply(block, x, memory, mask), weights); };
  const auto expect = [&](const auto& gradients) {
    expect_slopes(x, gradients.input, loss, "input");
    for_each_parameter(block, gradients.parameters, [&](auto& value, const auto& gradient) {
      expect_slopes(value, gradient, loss, "a parameter of " + std::to_string(value.size()));
    });
  };
  if (config.cross) {
    const auto gradients = block.backward(block.forward(x, memory, mask), grad);
    static_assert(std::is_same_v<std::remove_cvref_t<decltype(gradients.parameters)>,
                                 TransformerBlock<double>>);
    expect(gradients);
    expect_slopes(memory, gradients.memory, loss, "memory");
  } else {
    expect(block.backward(block.forward(x, mask), grad));
  }
}

TEST(TransformerBlockBackward, AgreesWithCentralDifferences) {
  for (auto config : kinds()) {
    config.attention.rotary = RotaryConfig{.dim = 2, .layout = RotaryLayout::half};
    config.attention.qk_norm = config.pre_norm;
    config.cross_attention = {.embed_dim = 12, .num_heads = 2, .key_dim = 5, .value_dim = 5};
    config.layer_scale = config.pre_norm == config.cross;
    config.mlp.gated = !config.mlp.gated;
    expect_block_slopes(config, causal());
  }
}

TEST(TransformerBlockBackward, OfAnotherStorageOrderAndAfterAMove) {
  const auto block = block_of<double>(kinds()[0]);
  const Reference numbers = random({2, 1, 5, 12}, 1), by = random({2, 1, 5, 12}, 2);
  const auto x = make<double, 3>(numbers), grad = make<double, 3>(by);
  const auto turned = make<double, 3, Eigen::ColMajor>(numbers),
             turned_grad = make<double, 3, Eigen::ColMajor>(by);
  const auto plain = block.backward(block.forward(x), grad);
  std::vector<decltype(block.forward(turned))> passes;
  for (int n = 0; n < 5; ++n) passes.push_back(block.forward(turned));
  static_assert(!std::is_copy_constructible_v<decltype(block.forward(turned))>);
  const auto result = block.backward(passes[1], turned_grad);
  static_assert(detail::storage_order<std::remove_cvref_t<decltype(result.input)>>() ==
                Eigen::ColMajor);
  EXPECT_TRUE(near(reference(result.input), reference(plain.input), 1e-12));
}

// A padded token of NaN that sees nothing and is seen by nothing.
TEST(TransformerBlockBackward, WhatIsHiddenReachesNothing) {
  const auto mask =
      mask_if([](Index b, Index, Index i, Index j) { return b == 0 || (i < 4 && j < 4); });
  for (const auto& config : kinds()) {
    if (config.cross) continue;
    const auto block = block_of<float>(config);
    auto x = make<float, 3>(random({2, 1, 5, 12}, 1)),
         grad = make<float, 3>(random({2, 1, 5, 12}, 2));
    for (Index c = 0; c < 12; ++c) {
      x(1, 4, c) = static_cast<float>(nan);
      grad(1, 4, c) = 0;
    }
    const auto result = block.backward(block.forward(x, mask), grad);
    const Reference input = reference(result.input);
    for (Index n = 0; n < input.size(); ++n) EXPECT_TRUE(std::isfinite(input.data()[n])) << n;
    for_each_parameter(result.parameters, [](std::string_view name, const auto& value) {
      EXPECT_TRUE(value.allFinite()) << name;
    });
  }
}

// ---------------------------------------------------------------- caches

TEST(TransformerBlock, TokensOfACacheAreThoseOfTheWhole) {
  for (auto config : kinds()) {
    config.attention.rotary = RotaryConfig{.layout = RotaryLayout::half};
    const auto block = block_of<float>(config);
    const auto x = make<float, 3>(random({2, 1, 11, 12}, 1)),
               memory = make<float, 3>(random({2, 1, 6, 12}, 2));
    const auto whole = apply(block, x, memory, causal());
    const CacheConfig sizes{
        .batch = 2, .kv_heads = 1, .key_dim = 4, .value_dim = 4, .capacity = 11};
    KeyValueCache<float> cache(sizes), remembered(sizes);
    if (config.cross) block.cross_attention.remember(remembered, memory, memory);
    Tensor<float, 3> result(2, 11, 12);
    Index first = 0;
    for (const Index count : {4, 1, 1, 5}) {
      const auto part = [&](Tensor<float, 3>& all) {
        auto some = view(all);
        some.data += first * some.strides[1];
        some.shape[1] = count;
        return some;
      };
      auto given = x;
      if (config.cross) {
        block.into(part(result), part(given), cache, remembered);
      } else {
        block.into(part(result), part(given), cache);
      }
      first += count;
    }
    EXPECT_TRUE(near(reference(result), reference(whole), 2e-5)) << text(config);
    cache.clear();
    const auto again = config.cross ? block(x, cache, remembered) : block(x, cache);
    EXPECT_TRUE(near(reference(again), reference(whole), 2e-5)) << text(config);
  }
}

TEST(TransformerBlock, ARefusalLeavesTheCache) {
  auto block = block_of<float>(kinds()[0]);
  const auto x = make<float, 3>(random({2, 1, 3, 12}, 1));
  KeyValueCache<float> cache(
      {.batch = 2, .kv_heads = 1, .key_dim = 4, .value_dim = 4, .capacity = 5});
  block.mlp.up_projection.bias.resize(3);
  EXPECT_TRUE(refuses([&] { block(x, cache); }, {"up_projection", "3"}));
  EXPECT_EQ(cache.length(0), 0);
}

#ifdef HEED_TEST_COUNTS_ALLOCATIONS
TEST(TransformerBlock, ASecondCallAllocatesNothing) {
  for (const auto& config : kinds()) {
    const auto block = block_of<float>(config);
    const auto x = make<float, 3>(random({2, 1, 37, 12}, 1)),
               token = make<float, 3>(random({2, 1, 1, 12}, 1)),
               memory = make<float, 3>(random({2, 1, 6, 12}, 2));
    const auto turned = make<float, 3, Eigen::ColMajor>(random({2, 1, 37, 12}, 1));
    const CacheConfig sizes{.batch = 2, .kv_heads = 1, .key_dim = 4, .value_dim = 4, .capacity = 9};
    KeyValueCache<float> cache(sizes), remembered(sizes);
    if (config.cross) block.cross_attention.remember(remembered, memory, memory);
    Tensor<float, 3> out(2, 37, 12), next(2, 1, 12);
    const auto call = [&] {
      if (config.cross) {
        block.into(out, x, memory, causal());
        block.into(out, turned, memory, causal());
        block.into(next, token, cache, remembered);
      } else {
        block.into(out, x, causal());
        block.into(out, turned, causal());
        block.into(next, token, cache);
      }
    };
    call();
    call();
    EXPECT_EQ(allocations_of(call), 0) << text(config);
  }
}
#endif

}  // namespace
}  // namespace heed::test
