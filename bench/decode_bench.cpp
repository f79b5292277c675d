#include "attention_cases.hpp"

namespace heed_bench {
namespace {

/// One query for each head against a long cache of keys and values, which is bound by the memory:
/// beside a plain read of the same bytes.
template <class Scalar>
Case make(const std::string& name, const Extents& e, double goal) {
  auto x = std::make_shared<AttentionData<Scalar>>(e);
  const Expected expected = reference(*x, plain_score);
  Case c;
  c.data = x;
  c.flops = e.flops();
  c.heed = heed_attention(name, x, expected, heed::scaled_dot_product(), heed::no_mask());
  c.base = [x = x.get()] {
    plain_read(x->key.data(), static_cast<std::size_t>(x->key.size()) * sizeof(Scalar));
    plain_read(x->value.data(), static_cast<std::size_t>(x->value.size()) * sizeof(Scalar));
  };
  c.base_name = "read";
  c.goal = of_base(goal);
  if constexpr (std::is_same_v<Scalar, float>) {
    c.eigen = eigen_attention(name, x, expected, no_adjustment);
  }
  return c;
}

Extents one_query(Index heads, Index kv_heads, Index keys, Index dim) {
  return {heads, kv_heads, 1, keys, dim};
}

/// 16-bit keys and values, half the bytes, beside float.
template <class Scalar>
void add_narrow(const std::string& type) {
  add(join("decode/", type, "/D64/H16xK8192"), [](const std::string& name) {
    const Extents e = one_query(16, 16, 8192, 64);
    Case c;
    c.flops = e.flops();
    c.goal = of_base(1.6);
    c.heed = plain_attention<Scalar>(name, e);
    c.base = plain_attention<float>(name, e).run;
    c.base_name = "float";
    return c;
  });
}

void add_all() {
  for (const Index dim : {64, 128}) {
    add(join("decode/plain/D", dim, "/H8xK4096"), [dim](const std::string& name) {
      return make<float>(name, one_query(8, 8, 4096, dim), .90);
    });
    add(join("decode/plain/D", dim, "/H16xK8192"), [dim](const std::string& name) {
      return make<float>(name, one_query(16, 16, 8192, dim), .90);
    });
  }
  for (const Index dim : {64, 128}) {
    // Above a half, the bytes cannot have been read twice.
    add(join("decode/grouped/D", dim, "/H32on8xK8192"), [dim](const std::string& name) {
      return make<float>(name, one_query(32, 8, 8192, dim), .50);
    });
  }
  add_narrow<Eigen::half>("half");
  add_narrow<Eigen::bfloat16>("bfloat16");
  add("decode/2_threads/D64/H1xK65536",
      [](const std::string& name) { return two_threads(name, one_query(1, 1, 65536, 64)); });
}

const Suite suite(add_all);

}  // namespace
}  // namespace heed_bench
