#include "attention_cases.hpp"

namespace heed_bench {
namespace {

template <class Scalar>
void add_plain(const std::string& prefix, const Extents& e, Goal goal) {
  add(join("attention/", prefix, "/D", e.dim, e.heads == 1 ? "/" : join("/H", e.heads, "x"), "S",
           e.queries),
      [e, goal](const std::string& name) {
        return beside_eigen<Scalar>(name, e, goal, heed::scaled_dot_product(), heed::no_mask(),
                                    plain_score, no_adjustment);
      });
}

void add_causal(Index seq, Goal goal) {
  add(join("attention/causal/D64/S", seq), [seq, goal](const std::string& name) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    Case c = beside_eigen<float>(
        name, Extents::square(1, seq, 64), goal, heed::scaled_dot_product(), heed::causal(),
        [](Index, Index i, Index j, const auto& q, const auto& k) {
          return j > i ? -infinity : scaled_dot(q, k);
        },
        [](Matrix<float>& scores, const auto&) {
          for (Index i = 0; i < scores.rows(); ++i) {
            scores.row(i).tail(scores.cols() - i - 1).setConstant(static_cast<float>(-infinity));
          }
        });
    c.flops *= static_cast<double>(seq + 1) / static_cast<double>(2 * seq);  // allowed pairs
    return c;
  });
}

void add_all() {
  for (const Index dim : {32, 64, 128}) {
    for (const Index seq : {128, 196, 512, 1024, 4096}) {
      Goal goal = of_peak(dim == 32 ? .80 : seq < 512 ? .84 : .86);
      if (dim == 32 && seq < 512) goal = {};
      add_plain<float>("plain", Extents::square(1, seq, dim), goal);
    }
  }
  for (const Index heads : {1, 16}) {
    add_plain<float>("small", Extents::square(heads, 8, 64), of_peak(.50));
    add_plain<float>("small", Extents::square(heads, 16, 64), of_peak(.65));
    add_plain<float>("small", Extents::square(heads, 32, 64), of_peak(.75));
    add_plain<float>("small", Extents::square(heads, 64, 64), of_peak(.82));
  }
  add_causal(128, of_peak(.72));
  add_causal(196, {});
  add_causal(512, of_peak(.82));
  add_causal(1024, {});
  add_causal(4096, of_peak(.85));
  for (const Index seq : {128, 512, 1024}) {
    add_plain<double>("double", Extents::square(1, seq, 64), of_peak(.78));
  }
}

const Suite suite(add_all);

}  // namespace
}  // namespace heed_bench
