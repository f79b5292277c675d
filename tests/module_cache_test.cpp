#include <limits>
#include <string>
#include <vector>

#include "heed/cache.hpp"
#include "heed/multi_head_attention.hpp"
#include "module_support.hpp"

namespace heed::test {
namespace {

constexpr Index embed = 24, length = 37;

MultiHeadConfig plain() { return {.embed_dim = embed, .num_heads = 3}; }
MultiHeadConfig all_of_it() {
  return {.embed_dim = embed,
          .num_heads = 4,
          .num_kv_heads = 2,
          .bias = true,
          .head_dim = 10,
          .rotary = RotaryConfig{.dim = 6, .layout = RotaryLayout::half},
          .qk_norm = true};
}

template <class Scalar = float>
MultiHeadAttention<Scalar> module_of(const MultiHeadConfig& config) {
  MultiHeadAttention<Scalar> module(config, 3);
  std::uint64_t seed = 20;
  for_each_parameter(module, [&](std::string_view name, auto& value) {
    if (name.ends_with("weight")) return;  // biases and norms, which start at 0 and at 1
    value += vector_of<Scalar>(value.size(), ++seed, .3);
  });
  return module;
}

template <class Element = float>
KeyValueCache<Element> cache_of(const MultiHeadConfig& given, Index batch, Index capacity = length,
                                Index window = 0, Index sinks = 0) {
  const MultiHeadConfig config = MultiHeadAttention<float>(given).config();
  return KeyValueCache<Element>({.batch = batch,
                                 .kv_heads = config.num_kv_heads,
                                 .key_dim = config.head_dim,
                                 .value_dim = config.head_dim,
                                 .capacity = capacity,
                                 .window = window,
                                 .sinks = sinks});
}

/// What the module gives for x, by so many tokens at a time.
template <class Scalar = float, class Module, class Cache>
Reference by_parts(const Module& module, Cache& cache, const Reference& x,
                   const std::vector<Index>& split) {
  Reference result(x.dimensions());
  Index first = 0;
  for (const Index n : split) {
    const Reference y = reference(module(make<Scalar, 3>(rows(x, first, first + n)), cache));
    for_each_index(y.dimensions(), [&](Index b, Index h, Index i, Index c) {
      result(b, h, first + i, c) = y(b, h, i, c);
    });
    first += n;
  }
  EXPECT_EQ(first, x.dimension(2));
  return result;
}

std::vector<std::vector<Index>> splits() {
  return {{length}, std::vector<Index>(length, 1), {20, 1, 1, 15}, {1, 0, 5, 31}, {7, 7, 7, 7, 9}};
}

TEST(ModuleCache, AnySplitGivesWhatTheWholeSequenceGives) {
  const Reference x = random({2, 1, length, embed}, 1);
  const auto whole = make<float, 3>(x);
  for (const MultiHeadConfig& config : {plain(), all_of_it()}) {
    const auto module = module_of(config);
    const Reference expected = reference(module(whole, whole, whole, causal()));
    for (const auto& split : splits()) {
      auto cache = cache_of(config, 2);
      EXPECT_TRUE(near(by_parts(module, cache, x, split), expected, 1e-5));
      EXPECT_EQ(cache.length(1), length);
      PagePool<float> pool({.pages = 20,
                            .page_size = 4,
                            .kv_heads = module.config().num_kv_heads,
                            .key_dim = module.config().head_dim,
                            .value_dim = module.config().head_dim});
      PagedKeyValueCache<float> paged(pool, 2);
      EXPECT_TRUE(near(by_parts(module, paged, x, split), expected, 1e-5));
    }
  }
}

TEST(ModuleCache, AWindowIsASlidingOne) {
  const Reference x = random({2, 1, length, embed}, 1);
  const auto whole = make<float, 3>(x);
  const auto module = module_of(all_of_it());
  for (const Index window : {1, 6}) {
    for (const Index sinks : {0, 3}) {
      const Reference expected = reference(module(
          whole, whole, whole, sliding_window(window - 1, 0) || (causal() && prefix(sinks))));
      for (const Index capacity : {0, 20}) {
        for (const auto& split : splits()) {
          auto cache = cache_of(all_of_it(), 2, capacity, window, sinks);
          EXPECT_TRUE(near(by_parts(module, cache, x, split), expected, 1e-5))
              << window << ' ' << sinks << ' ' << capacity << ' ' << split.size();
        }
      }
    }
  }
}

// Sequence 1 loses three of its tokens; what follows stands at its own positions.
TEST(ModuleCache, SequencesOfUnequalLength) {
  const auto module = module_of(all_of_it());
  const Reference x = random({2, 1, length, embed}, 1);
  auto cache = cache_of(all_of_it(), 2);
  module(make<float, 3>(rows(x, 0, 9)), cache);
  cache.truncate(1, 6);
  const Reference y = reference(module(make<float, 3>(rows(x, 9, 14)), cache));
  for (Index b = 0; b < 2; ++b) {
    const Index kept = b == 0 ? 9 : 6;
    const auto sequence =
        make<float, 2>(generate({1, 1, kept + 5, embed}, [&](Index, Index, Index i, Index c) {
          return x(b, 0, i < kept ? i : i - kept + 9, c);
        }));
    const auto full = module(sequence, sequence, sequence, causal());
    for_each_index({1, 1, 5, embed}, [&](Index, Index, Index i, Index c) {
      EXPECT_NEAR(y(b, 0, i, c), full(kept + i, c), 1e-5);
    });
  }
}

TEST(ModuleCache, WithoutABatchAndOfDouble) {
  const auto module = module_of<double>(all_of_it());
  const auto x = make<double, 2>(random({1, 1, length, embed}, 1));
  auto cache = cache_of<double>(all_of_it(), 1);
  Matrix<double> y(length, embed);
  y.topRows(30) = module(Matrix<double>(x.topRows(30)), cache);
  y.bottomRows(7) = module(Matrix<double>(x.bottomRows(7)), cache);
  EXPECT_TRUE(near(reference(y), reference(module(x, x, x, causal())), 1e-13));
}

// bfloat16 keeps eight bits of keys and values.
TEST(ModuleCache, OfNarrowElements) {
  const auto module = module_of(all_of_it());
  const Reference x = random({2, 1, length, embed}, 1);
  const auto whole = make<float, 3>(x);
  const Reference expected = reference(module(whole, whole, whole, causal()));
  auto cache = cache_of<Eigen::bfloat16>(all_of_it(), 2);
  EXPECT_TRUE(near(by_parts(module, cache, x, {20, 1, 1, 15}), expected, .05));
}

TEST(ModuleCache, CrossGivesWhatTheModuleGives) {
  MultiHeadConfig config = all_of_it();
  config.key_dim = 7;
  config.value_dim = 11;
  const auto module = module_of(config);
  const Reference k = random({2, 1, 29, 7}, 2), v = random({2, 1, 29, 11}, 3);
  auto cache = cache_of(config, 2);
  module.remember(cache, make<float, 3>(rows(k, 0, 20)), make<float, 3>(rows(v, 0, 20)));
  module.remember(cache, make<float, 3>(rows(k, 20, 29)), make<float, 3>(rows(v, 20, 29)));
  const auto key = make<float, 3>(k), value = make<float, 3>(v);
  for (const Index n : {1, 5, 30}) {
    const auto x = make<float, 3>(random({2, 1, n, embed}, 1));
    EXPECT_TRUE(near(reference(module.cross(x, cache)), reference(module(x, key, value)), 1e-5));
    EXPECT_TRUE(near(reference(module.cross(x, cache, valid_lens({0, 12}))),
                     reference(module(x, key, value, valid_lens({0, 12}))), 1e-5));
    EXPECT_TRUE(near(reference(module.cross(x, cache, causal())),
                     reference(module(x, key, value, causal())), 1e-5));
  }
}

TEST(ModuleCache, IntoEveryStride) {
  const auto module = module_of(all_of_it());
  const Reference x = random({2, 1, 5, embed}, 1);
  auto cache = cache_of(all_of_it(), 2), other = cache_of(all_of_it(), 2);
  const Reference expected = reference(module(make<float, 3>(x), cache));
  Scattered<float> scattered(constant({2, 1, 5, embed}, nan)), from(x);
  const auto flat = [](View<float, 4> view) {
    return View<float, 3>{view.data,
                          {view.shape[0], view.shape[2], view.shape[3]},
                          {view.strides[0], view.strides[2], view.strides[3]}};
  };
  module.into(flat(scattered.view()), flat(from.view()), other);
  EXPECT_TRUE(near(reference(scattered.view()), expected, 1e-5));
  EXPECT_EQ(scattered.written(), 2 * 5 * embed);
  Scattered<float> again(constant({2, 1, 5, embed}, nan));
  module.cross_into(flat(again.view()), flat(from.view()), other);
  EXPECT_TRUE(
      near(reference(again.view()), reference(module.cross(make<float, 3>(x), cache)), 1e-5));
}

TEST(ModuleCache, AFailingAppendLeavesEverythingAsItWas) {
  const auto module = module_of(all_of_it());
  const auto x = make<float, 3>(random({2, 1, 5, embed}, 1)),
             longer = make<float, 3>(random({2, 1, 9, embed}, 2));
  auto cache = cache_of(all_of_it(), 2, 12), twin = cache_of(all_of_it(), 2, 12);
  module(x, cache);
  module(x, twin);
  Tensor<float, 3> out(2, 9, embed);
  out.setConstant(5);
  EXPECT_TRUE(refuses([&] { module.into(out, longer, cache); }, {"heed::append", "9", "12"}));
  EXPECT_TRUE(same(reference(out), constant({2, 1, 9, embed}, 5)));
  EXPECT_TRUE(refuses([&] { module(x, cache, {.dropout = 1}); }, {"heed::", "dropout"}));
  EXPECT_EQ(cache.length(0), 5);
  EXPECT_TRUE(same(reference(module(x, cache)), reference(module(x, twin))));

  PagePool<float> pool({.pages = 3, .page_size = 4, .kv_heads = 2, .key_dim = 10, .value_dim = 10});
  PagedKeyValueCache<float> paged(pool, 2);
  EXPECT_THROW(module(x, paged), std::length_error);
  EXPECT_EQ(paged.length(0), 0);
  EXPECT_EQ(pool.free_pages(), 3);
}

TEST(ModuleCache, RefusesWhatDoesNotFit) {
  const auto module = module_of(all_of_it());
  const auto x = make<float, 3>(random({2, 1, 5, embed}, 1));
  const auto refused = [&](auto cache, std::initializer_list<std::string> parts) {
    EXPECT_TRUE(refuses([&] { module(x, cache); }, parts));
    EXPECT_TRUE(refuses([&] { module.cross(x, cache); }, parts));
    EXPECT_TRUE(refuses([&] { module.remember(cache, x, x); }, parts));
    EXPECT_EQ(cache.length(0), 0);
  };
  refused(cache_of(all_of_it(), 3),
          {"heed::MultiHeadAttention", "(3, 2, 10, 10)", "(2, 2, 10, 10)"});
  refused(cache_of(plain(), 2), {"heed::MultiHeadAttention", "(2, 3, 8, 8)", "(2, 2, 10, 10)"});
  auto cache = cache_of(all_of_it(), 2);
  EXPECT_TRUE(refuses([&] { module(make<float, 3>(random({2, 1, 5, 23}, 1)), cache); },
                      {"heed::MultiHeadAttention", "(2, 5, 23)", "24"}));
  EXPECT_TRUE(
      refuses([&] { module.remember(cache, x, make<float, 3>(random({2, 1, 4, embed}, 1))); },
              {"heed::MultiHeadAttention::remember", "(2, 5, 24)", "(2, 4, 24)"}));
  Tensor<float, 3> narrow(2, 5, 23), own = x;
  EXPECT_TRUE(refuses([&] { module.into(narrow, x, cache); }, {"(2, 5, 23)", "(2, 5, 24)"}));
  EXPECT_TRUE(refuses([&] { module.into(own, own, cache); }, {"shares elements"}));
  EXPECT_TRUE(refuses([&] { module.cross_into(own, own, cache); }, {"shares elements"}));
  constexpr Index most =
      std::numeric_limits<Index>::max() / 64 / embed;  // of which more is projected
  const float zero = 0;
  EXPECT_TRUE(
      refuses([&] { module(View<const float, 3>{&zero, {2, most / 2, embed}, {0, 0, 0}}, cache); },
              {"heed::MultiHeadAttention", "too many elements"}));
  auto broken = module;
  broken.key_norm.resize(9);
  EXPECT_TRUE(
      refuses([&] { broken(x, cache); }, {"heed::MultiHeadAttention", "key_norm", "9", "10"}));
  EXPECT_TRUE(refuses([&] { broken.remember(cache, x, x); }, {"key_norm"}));
  EXPECT_TRUE(refuses([&] { broken.cross(x, cache); }, {"key_norm"}));
  MultiHeadConfig widths = all_of_it();
  widths.key_dim = 7;
  EXPECT_TRUE(refuses([&] { module_of(widths)(x, cache); }, {"self-attention", "7"}));
  EXPECT_EQ(cache.length(0), 0);
}

}  // namespace
}  // namespace heed::test
