#include "heed/engine/tile/mask.hpp"
#include "heed/engine/tile/modify.hpp"
#include "heed/engine/tile/rows.hpp"
#include "heed/engine/tile/score.hpp"
#include "heed/engine/tile/score_additive.hpp"
#include "heed/mask.hpp"
#include "heed/modifier.hpp"
#include "heed/score.hpp"
#include "support.hpp"

/// What the fused engines do with one tile, against one pair after another.
namespace heed::detail {
namespace {

using L = Lanes<float>;
constexpr Index lanes = 2 * L::size;

Problem problem_of(Index queries, Index keys, Index dim) {
  return {"test", 1, 2, 2, queries, keys, dim, dim, dim, 4};
}

/// Tiles of up to 24 of the keys, in the order of where they begin.
template <class Mask>
void expect_pairs(const Mask& mask, const std::vector<Index>& begins = {0, 24, 48, 24, 0},
                  Index keys = 60) {
  const Index queries = lanes + 5, length = 24;
  const auto bound = bind_mask(mask, problem_of(queries, keys, 4));
  std::vector<float> pairs(static_cast<std::size_t>(length * Panels<float>::widest * L::size));
  for (const Index first : {Index(0), Index(5)}) {
    const Index count = std::min(lanes, queries - first);
    PanelMask<std::remove_const_t<decltype(bound)>, float> panel(bound, 0, 1, first, count, lanes,
                                                                 keys);
    for (const Index k : begins) {
      const Index tile = std::min(length, keys - k);
      const Coverage coverage = panel.tile(k, tile, pairs.data());
      Index seen = 0;
      for (Index j = 0; j < tile; ++j) {
        const bool clear = panel.clear_begin() <= j && j < panel.clear_end();
        for (Index lane = 0; lane < count; ++lane) {
          const int vector = static_cast<int>(lane / L::size);
          const bool allowed = bound.allows(0, 1, first + lane, k + j);
          seen += allowed;
          if (coverage == Coverage::partial) {
            float visible[static_cast<std::size_t>(L::size)];
            select(panel.visible(j, vector), L(1), L(0)).store(visible);
            EXPECT_EQ(clear || panel.visible_to(j, lane), allowed) << k + j << ' ' << first + lane;
            EXPECT_LE(panel.stair(vector), tile);
            EXPECT_EQ(clear || visible[lane % L::size] == 1, allowed) << k + j << ' ' << lane;
          }
          if (allowed) {
            EXPECT_TRUE(panel.begin() <= k + j && k + j < panel.end());
            EXPECT_TRUE(coverage == Coverage::full || j < panel.stair(vector)) << k + j;
          }
        }
      }
      // Partial is always right; empty and full are claims.
      EXPECT_TRUE(coverage != Coverage::empty || seen == 0);
      EXPECT_TRUE(coverage != Coverage::full || seen == tile * count);
    }
  }
}

TEST(PanelMask, AnswersAsThePairsDo) {
  expect_pairs(no_mask());
  expect_pairs(causal());
  expect_pairs(sliding_window(3, 8));
  expect_pairs(prefix(7) || causal(Align::top_left));
  expect_pairs(!sliding_window(10, 0));
  expect_pairs(mask_if([](Index, Index h, Index i, Index j) { return (i + 2 * j + h) % 3 == 0; }));
}

// Positions that a float does not tell from their neighbours.
TEST(PanelMask, FarFromTheFirstKey) {
  const Index keys = Index(1) << 34, middle = Index(1) << 33, queries = lanes + 5;
  const std::vector<Index> begins = {0,        middle - 12 - queries, middle - 12,
                                     middle,   keys - queries - 12,   keys - 24,
                                     keys - 3, middle - 12,           0};
  expect_pairs(causal(), begins, keys);
  expect_pairs(sliding_window(middle, 8), begins, keys);
  expect_pairs(sliding_window(3, middle, Align::top_left), begins, keys);
  expect_pairs(sliding_window(3, 8), begins, keys);
}

TEST(ScoreTile, ModifiersAsOnPairs) {
  const Index keys = 9, queries = lanes - 3;
  std::vector<float> scores(static_cast<std::size_t>(keys * lanes)), derivatives(scores.size());
  for (std::size_t at = 0; at < scores.size(); ++at) scores[at] = static_cast<float>(at % 17) - 8;
  const auto before = scores;
  const ScoreTile<float, 2> tile{scores.data(), 0, 1, 4, queries, 20, keys};
  const Problem problem = problem_of(4 + queries, 20 + keys, 4);
  const auto table = Matrix<float>::Random(4 + queries, 20 + keys).eval();
  const auto check = [&](const auto& modifier) {
    const auto bound = modifier.template bind<float>(problem);
    std::copy(before.begin(), before.end(), scores.begin());
    differentiate_modifier(tile, bound, derivatives.data());
    for (Index j = 0; j < keys; ++j) {
      for (Index i = 0; i < queries; ++i) {
        const auto at = static_cast<std::size_t>(j * lanes + i);
        const auto dual = [&](float s) { return modified<float>(bound, s, 0, 1, 4 + i, 20 + j); };
        EXPECT_NEAR(scores[at], dual(before[at]), 2e-6F * std::abs(before[at]) + 2e-6F);
        if constexpr (modifier_traits<std::remove_const_t<decltype(bound)>>.effect ==
                      Effect::maps) {
          const float slope = (dual(before[at] + .01F) - dual(before[at] - .01F)) / .02F;
          EXPECT_NEAR(derivatives[at], slope, 2e-3F) << before[at];
        }
      }
    }
  };
  check(softcap(3));
  check(alibi(std::vector<float>{.5F, .25F}));
  check(bias(table));
  check(score_mod([](auto s, auto, auto, auto i, auto j) {
    using std::tanh;
    return tanh(s / 4) + (j - i) / 64;
  }));
}

TEST(Scorer, PanelsAgainstPairs) {
  const Index dim = 13, keys = 21, queries = lanes - 1;
  const auto q = test::make<float, 2>(test::random({1, 1, queries, dim}, 1)),
             k = test::make<float, 2>(test::random({1, 1, keys, dim}, 2));
  const auto check = [&](const auto& score) {
    const auto bound = score.template bind<float>(problem_of(queries, keys, dim));
    Scorer<float, std::remove_const_t<decltype(bound)>> scorer(bound, dim, dim, lanes, keys);
    const Scratch scratch([&](Layout& layout) { scorer.lay(layout); });
    scorer.start();
    scorer.pack(Slab<const float>{q.data(), dim, 1}, 0, queries, 2 * L::size);
    const Rows<float> rows{k.data(), dim};
    scorer.take_keys(rows, 0, 0, keys, keys);
    std::vector<float> scores(static_cast<std::size_t>(keys * lanes)), most(lanes, -100);
    scorer.template score<2>(rows, 0, keys, scores.data(), most.data());
    for (Index i = 0; i < queries; ++i) {
      float largest = -100;
      for (Index j = 0; j < keys; ++j) {
        float sum = 0;
        for (Index c = 0; c < dim; ++c) {
          sum = bound.step(sum, q(i, c) * query_factor<float>(bound), k(j, c), c);
        }
        const float expected = bound.finish(sum);
        EXPECT_NEAR(scores[static_cast<std::size_t>(j * lanes + i)], expected, 4e-6F);
        largest = std::max(largest, scores[static_cast<std::size_t>(j * lanes + i)]);
      }
      EXPECT_EQ(most[static_cast<std::size_t>(i)], largest);
    }
  };
  check(dot_product(.7));
  check(gaussian(.8));
  const Vector<float> w = Vector<float>::Random(dim);
  check(additive(w));
}

}  // namespace
}  // namespace heed::detail
