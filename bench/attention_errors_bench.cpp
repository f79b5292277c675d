#include <string_view>

#include "attention_cases.hpp"

namespace heed_bench {
namespace {

/// The scores of one query by the number of the key, of which some are easy to get wrong. What
/// counts in these rows is the error.
struct Scores {
  const char* name;
  float (*of_key)(Index j, Index keys, float huge);
};

const Scores all_scores[] = {
    {"random", [](Index, Index, float) { return 0.0F; }},
    {"equal", [](Index, Index, float) { return -3.0F; }},
    {"dominant", [](Index j, Index keys, float) { return j == keys / 3 ? 60.0F : 0.0F; }},
    {"alternating", [](Index j, Index, float) { return j % 2 == 0 ? -6.0F : 6.0F; }},
    {"subnormal", [](Index j, Index, float) { return static_cast<float>(j % 5) * 1e-41F; }},
    {"huge", [](Index j, Index, float huge) { return huge * static_cast<float>(j % 7 - 3); }},
    {"negative", [](Index j, Index, float) { return -40.0F - static_cast<float>(j % 13) / 2; }}};

/// 20 queries of 64 features, of which the first gives the score of a key and 63 the random part.
/// `negative` hides the first 700 keys, several tiles.
template <class Scalar>
void add_errors(const char* type, const Scores& scores, Index keys) {
  add(join("attention_errors/", type, "/", scores.name, "/S", keys),
      [&scores, keys](const std::string& name) {
        constexpr double infinity = std::numeric_limits<double>::infinity();
        const std::string_view what = scores.name;
        const float huge = std::is_same_v<Scalar, Eigen::half> ? 2e4F : 1e29F;
        const Index hidden = what == "negative" ? std::min<Index>(keys / 2, 700) : 0;
        const Extents e{1, 1, 20, keys, 64};
        auto x = std::make_shared<AttentionData<Scalar>>(e);
        for (Index j = 0; j < keys; ++j) {
          for (Index c = what == "random" ? 64 : 0; c < 64; ++c) {
            x->key(0, 0, j, c) = Scalar(c == 0 ? scores.of_key(j, keys, huge) : 0.0F);
          }
        }
        for (Index i = 0; i < 20 && what != "random"; ++i) x->query(0, 0, i, 0) = Scalar(1.0F);
        for (Index n = 0; n < x->value.size() && what == "subnormal"; ++n) {
          x->value.data()[n] = Scalar(static_cast<float>(x->value.data()[n]) * 0x1p-130F);
        }
        const double scale = what == "random" ? .125 : 1;
        const Expected expected =
            reference(*x, [=](Index, Index, Index j, const auto& q, const auto& k) {
              return j < hidden ? -infinity : q.dot(k) * scale;
            });
        Case c;
        c.data = x;
        c.flops = e.flops();
        c.heed = heed_attention(name, x, expected, heed::dot_product(scale), !heed::prefix(hidden));
        return c;
      });
}

void add_all() {
  for (const Scores& scores : all_scores) {
    for (const Index keys : {64, 1024, 4096, 65536}) {
      add_errors<float>("float", scores, keys);
      if (std::string_view(scores.name) == "subnormal") continue;  // below half's and bfloat16's
      add_errors<Eigen::half>("half", scores, keys);
      add_errors<Eigen::bfloat16>("bfloat16", scores, keys);
    }
  }
}

const Suite suite(add_all);

}  // namespace
}  // namespace heed_bench
