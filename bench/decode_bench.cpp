#include <heed/cache.hpp>

#include "attention_cases.hpp"

namespace heed_bench {
namespace {

/// Keys and values in a cache, whose numbers are `Element`.
template <class Element, template <class> class Cache>
struct Decoding {
  Tensor<float, 4> query, output;
  std::unique_ptr<heed::PagePool<Element>> pages;
  std::unique_ptr<Cache<Element>> cache;
  std::optional<Eigen::ThreadPool> pool;
  std::vector<char> same_bytes;

  Decoding(const Extents& e, Index page)
      : query(random<float, 4>({1, e.heads, e.queries, e.dim}, 1)),
        output(1, e.heads, e.queries, e.dim) {
    if constexpr (std::is_same_v<Cache<Element>, heed::KeyValueCache<Element>>) {
      cache = std::make_unique<Cache<Element>>(heed::CacheConfig{
          .kv_heads = e.kv_heads, .key_dim = e.dim, .value_dim = e.dim, .capacity = e.keys});
    } else {
      pages = std::make_unique<heed::PagePool<Element>>(
          heed::PagePoolConfig{.pages = (e.keys + page - 1) / page,
                               .page_size = page,
                               .kv_heads = e.kv_heads,
                               .key_dim = e.dim,
                               .value_dim = e.dim});
      cache = std::make_unique<Cache<Element>>(*pages);
    }
    cache->append(random<float, 4>({1, e.kv_heads, e.keys, e.dim}, 2),
                  random<float, 4>({1, e.kv_heads, e.keys, e.dim}, 3));
    const std::size_t row = static_cast<std::size_t>(e.dim) * sizeof(heed::detail::Stored<Element>);
    const std::size_t scale = std::is_same_v<Element, heed::Quantised8> ? sizeof(float) : 0;
    same_bytes.assign(static_cast<std::size_t>(2 * e.kv_heads * e.keys) * (row + scale), 1);
  }

  /// What the cache holds, as double.
  static Tensor<double, 4> held(const auto& source, const Extents& e) {
    Tensor<double, 4> rows(1, e.kv_heads, e.keys, e.dim);
    for (Index h = 0; h < e.kv_heads; ++h) {
      for (Index j = 0; j < e.keys; ++j) {
        const auto run = source.run(0, h, j, 1);
        for (Index c = 0; c < e.dim; ++c) rows(0, h, j, c) = run.template at<double>(0, c);
      }
    }
    return rows;
  }
  Expected expected(const Extents& e) const {
    const Tensor<double, 4> q = query.template cast<double>();
    const auto k = held(cache->key_rows(e.keys), e), v = held(cache->value_rows(e.keys), e);
    return reference_attention<const double>(heed::view(q), heed::view(k), heed::view(v),
                                             plain_score);
  }
};

template <class Element, template <class> class Cache = heed::KeyValueCache>
std::shared_ptr<Decoding<Element, Cache>> decoding(const Extents& e, Index page = 0) {
  return std::make_shared<Decoding<Element, Cache>>(e, page);
}

template <class Element, template <class> class Cache>
Contender contender(const std::string& name, std::shared_ptr<Decoding<Element, Cache>> x,
                    const Extents& e, bool pool = false) {
  if (pool) x->pool.emplace(2);
  const heed::AttentionOptions options{.pool = pool ? &*x->pool : nullptr};
  return verified(
      name,
      [x, options] {
        heed::attention_into(x->output, x->query, *x->cache, heed::scaled_dot_product(),
                             heed::no_mask(), options);
      },
      [x] { return heed::view(x->output); }, x->expected(e), attention_bound<float>());
}

/// New queries against a long cache, which is bound by the memory, or beyond that by what the
/// queries compute: beside a plain read of the same bytes.
template <class Element>
void add_read(const std::string& what, const Extents& e, double goal) {
  add(join("decode/", what, "/D", e.dim, "/H", e.heads, "on", e.kv_heads, "xK", e.keys),
      [=](const std::string& name) {
        auto x = decoding<Element>(e);
        Case c;
        c.data = x;
        c.flops = e.flops();
        c.heed = contender(name + ": heed", x, e);
        c.base = [x = x.get()] { plain_read(x->same_bytes.data(), x->same_bytes.size()); };
        c.base_name = "read";
        c.goal = of_base(goal);
        return c;
      });
}

/// The same from pages, beside a cache in one piece.
void add_paged(Index page) {
  add(join("decode/pages_of_", page, "/D64/H8xK16384"), [page](const std::string& name) {
    const Extents e{8, 8, 1, 16384, 64};
    Case c;
    c.flops = e.flops();
    c.heed = contender(name + ": heed", decoding<float, heed::PagedKeyValueCache>(e, page), e);
    c.base = contender(name + ": one piece", decoding<float>(e), e).run;
    c.base_name = "one piece";
    c.goal = of_base(.95);
    return c;
  });
}

/// Two threads beside one, as a plain read by two is beside one by one.
template <class Element>
void add_threads(const std::string& type, const Extents& e) {
  add(join("decode/2_threads/", type, "/D", e.dim, "/H", e.heads, "xK", e.keys),
      [e](const std::string& name) {
        Case c;
        c.flops = e.flops();
        c.heed = contender(name + ": heed", decoding<Element>(e), e, true);
        c.base = contender(name + ": 1 thread", decoding<Element>(e), e).run;
        c.base_name = "1 thread";
        c.goal = of_base(1.8);
        c.threaded = true;
        return c;
      });
}

/// Tokens of a prompt, appended to an empty cache and attended to, beside causal attention to a
/// copy of the same keys and values.
void add_prefill(Index tokens) {
  add(join("prefill/D64/H8xS", tokens), [tokens](const std::string& name) {
    const Extents e = Extents::square(8, tokens, 64);
    struct Data : AttentionData<float> {
      using AttentionData::AttentionData;
      Tensor<float, 4> key_copy = key, value_copy = value;
      std::optional<heed::KeyValueCache<float>> cache;
    };
    auto x = std::make_shared<Data>(e);
    x->cache.emplace(heed::CacheConfig{
        .kv_heads = e.kv_heads, .key_dim = e.dim, .value_dim = e.dim, .capacity = tokens});
    const Expected expected =
        reference(*x, [](Index, Index i, Index j, const auto& q, const auto& k) {
          return j <= i ? scaled_dot(q, k) : -std::numeric_limits<double>::infinity();
        });
    Case c;
    c.data = x;
    c.flops = e.flops() / 2;
    c.heed = verified(
        name + ": heed",
        [x = x.get()] {
          x->cache->clear();
          x->cache->append(x->key, x->value);
          heed::attention_into(x->output, x->query, *x->cache, heed::scaled_dot_product(),
                               heed::causal());
        },
        [x = x.get()] { return heed::view(x->output); }, expected, attention_bound<float>());
    c.base = [x = x.get()] {
      std::copy_n(x->key.data(), x->key.size(), x->key_copy.data());
      std::copy_n(x->value.data(), x->value.size(), x->value_copy.data());
      heed::attention_into(x->output, x->query, x->key_copy, x->value_copy,
                           heed::scaled_dot_product(), heed::causal());
    };
    c.base_name = "a copy";
    c.goal = of_base(.95);
    return c;
  });
}

void add_all() {
  for (const Index dim : {64, 128}) {
    const Extents one{8, 8, 1, 16384, dim};
    add_read<float>("float", one, .90);
    add_read<Eigen::half>("half", one, .90);
    add_read<Eigen::bfloat16>("bfloat16", one, .90);
    add_read<heed::Quantised8>("int8", one, .90);
  }
  for (const Index queries : {2, 4, 8, 16}) {
    const Extents few{8, 8, queries, 16384, 64};
    add_read<float>(join("float/", queries, "_queries"), few, .90);
    add_read<Eigen::bfloat16>(join("bfloat16/", queries, "_queries"), few, .90);
  }
  for (const Index dim : {64, 128}) {
    const Extents grouped{32, 8, 1, 16384, dim};
    add_read<float>("float/grouped", grouped, .90);
    add_read<Eigen::bfloat16>("bfloat16/grouped", grouped, .90);
    add_read<heed::Quantised8>("int8/grouped", grouped, .90);
  }
  for (const Index page : {16, 64}) add_paged(page);
  add_threads<float>("float", {1, 1, 1, 131072, 64});
  add_threads<Eigen::bfloat16>("bfloat16", {1, 1, 1, 262144, 64});
  for (const Index tokens : {128, 512}) add_prefill(tokens);
}

const Suite suite(add_all);

}  // namespace
}  // namespace heed_bench
