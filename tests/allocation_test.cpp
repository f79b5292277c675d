#include "heed/linear.hpp"

#include "allocation_support.hpp"
#include "heed/additive_attention.hpp"
#include "heed/cache.hpp"
#include "heed/multi_head_attention.hpp"
#include "score_support.hpp"

#ifdef HEED_TEST_COUNTS_ALLOCATIONS
namespace heed::test {
namespace {

TEST(Allocations, TheCounterCounts) {
  EXPECT_GE(allocations_of([] {
              Matrix<float> x(30, 30);
              x.setZero();
              EXPECT_EQ(x.sum(), 0);
            }),
            1);
  EXPECT_GE(allocations_of([] {
              std::vector<std::vector<int>> x(3, std::vector<int>(5));
              EXPECT_EQ(x.size(), 3U);
            }),
            1);
  EXPECT_GE(allocations_of([] {
              void* p = ::operator new(100, std::align_val_t(64));
              EXPECT_NE(p, nullptr);
              ::operator delete(p, std::align_val_t(64));
            }),
            1);
}

template <class Scalar, class Score, class Mask>
void expect_none(const Score& score, const Mask& mask) {
  for (const Sizes& sizes : sweep()) {
    const Inputs in(sizes);
    const auto q = make<Scalar, 4>(in.query), k = make<Scalar, 4>(in.key),
               v = make<Scalar, 4>(in.value);
    Scattered<Scalar> strided(in.key);
    const auto strided_key = strided.view();
    Tensor<Scalar, 4> out(sizes.batch, sizes.heads, sizes.queries, sizes.width);
    attention_into(out, q, k, v, score, mask);
    EXPECT_EQ(allocations_of([&] { attention_into(out, q, k, v, score, mask); }), 0) << text(sizes);
    attention_into(out, q, strided_key, v, score, mask);
    EXPECT_EQ(allocations_of([&] { attention_into(out, q, strided_key, v, score, mask); }), 0)
        << text(sizes) << " with strides";
  }
}

TEST(Allocations, ASecondCallOfTheSameShapeMakesNone) {
  expect_none<float>(scaled_dot_product(), no_mask());
  expect_none<double>(scaled_dot_product(), causal());
  expect_none<Eigen::half>(scaled_dot_product(), sliding_window(20, 5) || prefix(3));
  expect_none<float>(gaussian(.5) | softcap(3),
                     mask_if([](Index, Index, Index i, Index j) { return (i + j) % 3 != 0; }));
  expect_none<float>(triangular(2), causal());
}

TEST(Allocations, NorWithParametersDropoutAndLengths) {
  const Inputs in(
      {.batch = 2, .heads = 4, .key_heads = 2, .queries = 49, .keys = 193, .dim = 9, .width = 7});
  const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key), v = make<float, 4>(in.value);
  const auto w = vector_of<float>(9, 4), slopes = vector_of<float>(4, 5);
  const auto m = make<float, 2>(random({1, 1, 9, 9}, 6)),
             pairs = make<float, 2>(random({1, 1, 49, 193}, 7));
  const std::vector<int> lens = {100, 193};
  Tensor<float, 4> out(2, 4, 49, 7);
  const auto none = [&](const auto& score) {
    const auto call = [&] {
      attention_into(out, q, k, v, score, valid_lens(lens), {.dropout = .2, .seed = 1});
    };
    call();
    EXPECT_EQ(allocations_of(call), 0);
  };
  none(additive(w));
  none(bilinear(m));
  none(dot_product() | bias(pairs) | alibi(slopes));
}

TEST(Allocations, NorForOneQuery) {
  for (const Index kv_heads : {1, 4}) {
    const Inputs in({.batch = 2,
                     .heads = 4,
                     .key_heads = kv_heads,
                     .queries = 1,
                     .keys = 2500,
                     .dim = 64,
                     .width = 32});
    const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key),
               v = make<float, 4>(in.value);
    Tensor<float, 4> out(2, 4, 1, 32);
    const auto call = [&] { attention_into(out, q, k, v, scaled_dot_product(), causal()); };
    call();
    EXPECT_EQ(allocations_of(call), 0);
  }
}

TEST(Allocations, NorForMatrixProductsAndLinear) {
  for (const Index n : {1, 7, 64, 300}) {
    const Matrix<float> a = Matrix<float>::Random(n, n + 1), b = Matrix<float>::Random(n + 1, n);
    Matrix<float> c(n, n);
    const auto product = [&] { batched_matmul_into(c, a, b); };
    product();
    EXPECT_EQ(allocations_of(product), 0) << n;
    const auto turned = [&] { batched_matmul_into(c, transposed(b), transposed(a)); };
    turned();
    EXPECT_EQ(allocations_of(turned), 0) << n;
    const Linear<float> linear{Matrix<float>::Random(n, n + 1), Vector<float>::Random(n)};
    const auto projection = [&] { linear.into(c, a); };
    projection();
    EXPECT_EQ(allocations_of(projection), 0) << n;
  }
}

TEST(Allocations, NorForModules) {
  const MultiHeadAttention<Eigen::bfloat16> module(
      {.embed_dim = 24,
       .num_heads = 4,
       .num_kv_heads = 2,
       .bias = true,
       .rotary = RotaryConfig{.layout = RotaryLayout::half},
       .qk_norm = true},
      3);
  for (const Index n : {1, 5, 70}) {
    int line = 0;
    const auto none = [&](const auto& call) {
      call();
      EXPECT_EQ(allocations_of(call), 0) << n << " tokens, call " << line;
      ++line;
    };
    const auto x = make<float, 3>(random({2, 1, n, 24}, 1));
    Tensor<float, 3> out(2, n, 24);
    none([&] { module.into(out, x, x, x, causal()); });
    const CacheConfig sizes{
        .batch = 2, .kv_heads = 2, .key_dim = 6, .value_dim = 6, .capacity = 1000};
    KeyValueCache<float> cache(sizes);
    none([&] {
      cache.clear();
      module.into(out, x, cache);
    });
    none([&] { module.cross_into(out, x, cache); });
    none([&] {
      cache.clear();
      module.remember(cache, x, x);
    });
    auto ring = sizes;
    ring.window = 9;
    KeyValueCache<Eigen::half> window(ring);
    none([&] {
      window.clear();
      module.into(out, x, window);
    });
    PagePool<float> pool(
        {.pages = 200, .page_size = 4, .kv_heads = 2, .key_dim = 6, .value_dim = 6});
    PagedKeyValueCache<float> paged(pool, 2);
    none([&] {
      paged.clear();
      module.into(out, x, paged);
    });
    const AdditiveAttention<float> additive_module(24, 24, 8, 3);
    none([&] { additive_module.into(out, x, x, x, causal()); });
  }
}

}  // namespace
}  // namespace heed::test
#endif
