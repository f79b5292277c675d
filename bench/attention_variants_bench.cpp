#include "attention_cases.hpp"

namespace heed_bench {
namespace {

void add_modifiers() {
  const Extents e = Extents::square(1, 1024, 64);
  add("attention/modified/softcap/D64/S1024", [e](const std::string& name) {
    return beside_eigen<float>(
        name, e, of_peak(.80), heed::scaled_dot_product() | heed::softcap(20), heed::no_mask(),
        [](Index, Index, Index, const auto& q, const auto& k) {
          return 20 * std::tanh(scaled_dot(q, k) / 20);
        },
        [](Matrix<float>& s, const auto&) { s = ((s / 20.0F).array().tanh() * 20.0F).matrix(); });
  });
  add("attention/modified/alibi/D64/S1024", [e](const std::string& name) {
    const std::vector<float> slopes{1.0F / 64};
    return beside_eigen<float>(
        name, e, of_peak(.80), heed::scaled_dot_product() | heed::alibi(std::vector(slopes)),
        heed::no_mask(),
        [](Index, Index i, Index j, const auto& q, const auto& k) {
          return scaled_dot(q, k) + static_cast<double>(j - i) / 64;
        },
        [](Matrix<float>& s, const auto&) {
          for (Index i = 0; i < s.rows(); ++i) {
            const auto first = static_cast<float>(-i);
            s.row(i) += Eigen::RowVectorXf::LinSpaced(s.cols(), first,
                                                      first + static_cast<float>(s.cols() - 1)) /
                        64.0F;
          }
        });
  });
  add("attention/modified/bias/D64/S1024", [e](const std::string& name) {
    const auto bias = std::make_shared<Matrix<float>>(e.queries, e.keys);
    fill(bias->data(), bias->size(), 5);
    Case c = beside_eigen<float>(
        name, e, of_peak(.75), heed::scaled_dot_product() | heed::bias(*bias), heed::no_mask(),
        [&](Index, Index i, Index j, const auto& q, const auto& k) {
          return scaled_dot(q, k) + static_cast<double>((*bias)(i, j));
        },
        [bias](Matrix<float>& s, const auto&) { s += *bias; });
    c.data =
        std::make_shared<std::pair<std::shared_ptr<void>, std::shared_ptr<void>>>(c.data, bias);
    return c;
  });
}

/// The Gaussian expands into a dot product, which it is compared with.
void add_gaussian(Index seq) {
  add(join("attention/gaussian/D64/S", seq), [seq](const std::string& name) {
    const Extents e = Extents::square(1, seq, 64);
    Case c = beside_eigen<float>(
        name, e, of_base(.90), heed::gaussian(.25), heed::no_mask(),
        [](Index, Index, Index, const auto& q, const auto& k) {
          return -(q - k).squaredNorm() / 32;
        },
        // q.k / 8 becomes (2 q.k - |k|^2) / 32; softmax cancels |q|^2.
        [](Matrix<float>& s, const auto& key) {
          s = (s / 2.0F).rowwise() - key.rowwise().squaredNorm().transpose() / 32.0F;
        });
    c.base = plain_attention<float>(name, e).run;
    c.base_name = "dot product";
    return c;
  });
}

/// Inputs and output that lie as (batch, seq, heads, dim), beside (batch, heads, seq, dim).
void add_strided(Index heads, Index seq) {
  add(join("attention/strided/D64/H", heads, "xS", seq), [heads, seq](const std::string& name) {
    struct Data {
      Tensor<float, 3> query, key, value, output;
    };
    const Extents e = Extents::square(heads, seq, 64);
    const std::array<Index, 3> shape{1, seq, heads * 64};
    auto x = std::make_shared<Data>(Data{random<float, 3>(shape, 1), random<float, 3>(shape, 2),
                                         random<float, 3>(shape, 3), Tensor<float, 3>(shape)});
    const auto split = [heads](Tensor<float, 3>& t) { return heed::split_heads(t, heads); };
    const auto q = split(x->query), k = split(x->key), v = split(x->value), out = split(x->output);
    Case c;
    c.data = x;
    c.flops = e.flops();
    c.goal = of_base(.95);
    c.heed = verified(
        name + ": heed", [=] { heed::attention_into(out, q, k, v); }, [=] { return out; },
        reference_attention<float>(q, k, v, plain_score), attention_bound<float>());
    c.base = plain_attention<float>(name, e).run;
    c.base_name = "contiguous";
    return c;
  });
}

/// 16-bit inputs and output, summed in float, beside float.
template <class Scalar>
void add_narrow(const std::string& type, Index seq) {
  add(join("attention/", type, "/D64/S", seq), [seq](const std::string& name) {
    const Extents e = Extents::square(1, seq, 64);
    Case c;
    c.flops = e.flops();
    c.goal = of_base(.90);
    c.heed = plain_attention<Scalar>(name, e);
    c.base = plain_attention<float>(name, e).run;
    c.base_name = "float";
    return c;
  });
}

void add_all() {
  add_modifiers();
  add_gaussian(128);
  add_gaussian(1024);
  add_strided(8, 128);
  add_strided(8, 512);
  for (const Index seq : {128, 1024}) add_narrow<Eigen::half>("half", seq);
  for (const Index seq : {128, 1024}) add_narrow<Eigen::bfloat16>("bfloat16", seq);
  for (const Extents& e :
       {Extents::square(8, 512, 64), Extents::square(2, 1024, 64), Extents::square(1, 4096, 64)}) {
    add(join("attention/2_threads/D64/H", e.heads, "xS", e.queries),
        [e](const std::string& name) { return two_threads(name, e); });
  }
}

const Suite suite(add_all);

}  // namespace
}  // namespace heed_bench
