#include <utility>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/kernel/few_queries.hpp"
#include "heed/kernel/gemm.hpp"
#include "heed/kernel/online_softmax.hpp"
#include "heed/kernel/outer_product.hpp"
#include "heed/kernel/pack.hpp"
#include "heed/kernel/panels.hpp"
#include "heed/kernel/register_tile.hpp"
#include "heed/kernel/softmax_row.hpp"
#include "heed/simd/convert.hpp"
#include "heed/simd/select.hpp"
#include "support.hpp"

/// The loops below the engines, each against a plain one, over lengths around the registers.
namespace heed::detail {
namespace {

using L = Lanes<float>;
constexpr Index n = L::size;

/// 1, 2, ... of any length, some of them negative.
std::vector<float> numbers(Index count, int seed = 0) {
  std::vector<float> result;
  for (Index i = 0; i < count; ++i) {
    result.push_back(static_cast<float>((i * 7 + seed * 3) % 23) - 9);
  }
  return result;
}

constexpr std::size_t at(Index i) { return static_cast<std::size_t>(i); }

TEST(Layout, ListsWhatItTakesOnce) {
  float *a = nullptr, *b = nullptr;
  double* c = nullptr;
  const auto lay = [&](Layout& layout) {
    a = layout.take<float>(3);
    b = layout.take<float>(0);
    c = layout.take<double>(9);
  };
  Layout measure;
  lay(measure);
  // 12 bytes and 72, each rounded up to 64s; of nothing, nothing.
  EXPECT_EQ(measure.bytes(), 64U + 128U);
  const Scratch scratch(lay);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(a) % 64, 0U);
  EXPECT_EQ(static_cast<void*>(c), static_cast<void*>(a + 16));
  EXPECT_EQ(static_cast<void*>(b), static_cast<void*>(c));
}

TEST(Parallel, CoversEveryItemOnceAndHandsOnErrors) {
  Eigen::ThreadPool pool(3);
  for (Eigen::ThreadPoolInterface* of : {static_cast<Eigen::ThreadPoolInterface*>(nullptr),
                                         static_cast<Eigen::ThreadPoolInterface*>(&pool)}) {
    for (const Index items : {0, 1, 2, 23, 500}) {
      std::vector<std::atomic<int>> seen(at(items));
      parallel_for(of, items, [&](Index first, Index last) {
        for (Index i = first; i < last; ++i) ++seen[at(i)];
      });
      for (const auto& count : seen) EXPECT_EQ(count, 1);
    }
    EXPECT_THROW(parallel_for(of, 40,
                              [](Index first, Index last) {
                                if (first <= 17 && 17 < last) throw std::runtime_error("17");
                              }),
                 std::runtime_error);
  }
}

TEST(Parallel, ManyCallersNestedCallsAndPoolsThatEnd) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    Eigen::ThreadPool pool(4), other(2);
    std::vector<std::thread> callers;
    std::atomic<Index> sum{0};
    for (int caller = 0; caller < 3; ++caller) {
      callers.emplace_back([&] {
        for (Index items = 1; items < 40; ++items) {
          parallel_for(&pool, items, [&](Index first, Index last) {
            for (Index i = first; i < last; ++i) {
              parallel_for(i % 2 == 0 ? &pool : &other, 3,
                           [&](Index from, Index to) { sum += (to - from) * i; });
            }
          });
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
    // 3 callers, 3 items within each of 0 .. n-1, for n = 1 .. 39: the sum of n (n - 1) / 2 is
    // 38 * 39 * 40 / 6 = 9880.
    EXPECT_EQ(sum, 3 * 3 * 9880);
  }
}

TEST(Parallel, EveryErrorIsHandedOn) {
  Eigen::ThreadPool pool(3);
  for (int repeat = 0; repeat < 200; ++repeat) {
    EXPECT_THROW(parallel_for(&pool, 5, [](Index, Index) { throw std::runtime_error("each"); }),
                 std::runtime_error);
  }
}

TEST(Parallel, SmallProductsAreNotShared) {
  Eigen::ThreadPool pool(2);
  const Index all = std::exchange(least_shared, 8 * 8 * 16);
  // 8 x 16 times 16 x 8 has 8 * 8 * 16 multiply-adds; with a row less it has fewer.
  EXPECT_EQ(pool_for(8 * 8 * 16, &pool), &pool);
  EXPECT_EQ(pool_for(7 * 8 * 16, &pool), nullptr);
  for (const Index rows : {7, 8}) {
    const std::vector<float> a = numbers(rows * 16), b = numbers(16 * 8, 1);
    std::vector<float> c(at(rows * 8));
    const View<const float, 4> left{a.data(), {1, 1, rows, 16}, {0, 0, 16, 1}},
        right{b.data(), {1, 1, 16, 8}, {0, 0, 8, 1}};
    const View<float, 4> product{c.data(), {1, 1, rows, 8}, {0, 0, 8, 1}};
    multiply(left, right, product, &pool);
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < 8; ++j) {
        double sum = 0;
        for (Index d = 0; d < 16; ++d) sum += double{a[at(i * 16 + d)]} * double{b[at(d * 8 + j)]};
        EXPECT_EQ(c[at(i * 8 + j)], sum);  // whole numbers
      }
    }
  }
  least_shared = all;
}

TEST(Parallel, HelpThatComesTooLateStaysForTheNextJob) {
  if (Seat::count() == 0) GTEST_SKIP() << "one processor: nobody stays awake";
  Eigen::ThreadPool pool(2);
  std::atomic<int> items{0};
  const auto count = [&items](Index first, Index last) { items += static_cast<int>(last - first); };
  const LoopBody body{[](const void* of, Index first, Index last) {
                        (*static_cast<const decltype(count)*>(of))(first, last);
                      },
                      &count};
  // A thread stays for a while only, so that this one may miss it, but not time after time.
  bool stayed = false;
  for (int round = 0; round < 10000 && !stayed; ++round) {
    std::atomic<int> busy{0};
    std::atomic<bool> over{false};
    for (int thread = 0; thread < 2; ++thread) {
      pool.Schedule([&] {
        ++busy;
        while (!over) std::this_thread::yield();
        --busy;
      });
    }
    while (busy < 2) std::this_thread::yield();
    items = 0;
    parallel_for(&pool, 2, count);
    EXPECT_EQ(items, 2);  // the caller's own work
    over = true;
    while (busy > 0) std::this_thread::yield();
    for (int look = 0; look < 10000 && !stayed; ++look) {
      Job job(body, 1, 1);
      for (Index seat = 0; seat < Seat::count() && !stayed; ++seat) {
        if (!Seat::at(seat).offer(&pool, job)) continue;
        stayed = true;
        if (!Seat::at(seat).withdraw(&pool, job)) job.wait(1);
      }
    }
  }
  EXPECT_TRUE(stayed);
}

TEST(Select, LaneByLane) {
  EXPECT_EQ(heed::select(true, 1, 2), 1);
  float x[at(n)];
  heed::select(L::counting(0) < L(2), L(5), L::counting(0)).store(x);
  for (Index i = 0; i < n; ++i) EXPECT_EQ(x[i], i < 2 ? 5 : static_cast<float>(i));
}

TEST(Lanes, RootsOfEverything) {
  float x[at(n)];
  for (const float a : {0.F, 2.25F, 3e38F, std::numeric_limits<float>::infinity()}) {
    sqrt(L(a)).store(x);
    EXPECT_EQ(x[0], std::sqrt(a));
  }
}

template <class Stored>
void expect_conversion() {
  Stored stored[at(n)], back[at(n)];
  for (Index i = 0; i < n; ++i) stored[i] = Stored(static_cast<float>(i) * .375F - 1);
  float wide[at(n)];
  load_widened<float>(stored).store(wide);
  for (Index i = 0; i < n; ++i) EXPECT_EQ(wide[i], static_cast<float>(stored[i]));
  store_narrowed(L::load(wide), back);
  for (Index i = 0; i < n; ++i) EXPECT_EQ(static_cast<float>(back[i]), wide[i]);
}
TEST(Convert, ThereAndBack) {
  expect_conversion<float>();
  expect_conversion<Eigen::half>();
  expect_conversion<Eigen::bfloat16>();
}

TEST(Convert, RoundsToNearestBfloat16) {
  // Between 1 and the next, 1 + 2^-7: below the middle, the middle (to even, both ways), above it;
  // past the largest, and what is no number.
  const auto infinity = std::numeric_limits<float>::infinity();
  const float numbers[] = {
      1 + 0x1p-9F, 1 + 0x1p-8F, 1 + 0x3p-8F, 1 + 0x1.8p-8F,
      -1.F,        3.4e38F,     -infinity,   std::numeric_limits<float>::quiet_NaN()};
  const float expected[] = {1, 1, 1 + 0x1p-6F, 1 + 0x1p-7F, -1, infinity, -infinity, 0};
  Eigen::bfloat16 stored[at(n)];
  for (std::size_t i = 0; i < std::size(numbers); ++i) {
    store_narrowed(L(numbers[i]), stored);
    for (const Eigen::bfloat16 x : stored) {
      if (std::isnan(numbers[i])) {
        EXPECT_TRUE(std::isnan(static_cast<float>(x)));
      } else {
        EXPECT_EQ(static_cast<float>(x), expected[i]);
      }
    }
  }
}

TEST(Panels, CoverTheColumns) {
  for (Index columns = 1; columns <= 13 * n; ++columns) {
    for (const Index width : {2, 3}) {
      const Panels<float> panels(columns, width);
      Index next = 0;
      for (Index p = 0; p < panels.count; ++p) {
        EXPECT_EQ(panels[p].first, next);
        EXPECT_TRUE(panels[p].vectors >= 1 && panels[p].vectors <= width);
        next += panels[p].vectors * n;
      }
      EXPECT_EQ(next, padded<float>(columns));
    }
  }
  // 7 vectors: 3 + 2 + 2 rather than 3 + 3 + 1.
  const Panels<float> seven(7 * n);
  EXPECT_EQ(seven[0].vectors, 3);
  EXPECT_EQ(seven[2].vectors, 2);
}

TEST(Panels, EvenOnesCoverTheColumns) {
  // 9 vectors in panels of up to 4: 3 + 3 + 3; 10: 4 + 3 + 3.
  const EvenPanels<float, 4> nine(9 * n), ten(9 * n + 1);
  ASSERT_EQ(nine.count, 3);
  EXPECT_EQ(nine[1].first, 3 * n);
  EXPECT_EQ(nine[2].vectors, 3);
  ASSERT_EQ(ten.count, 3);
  EXPECT_EQ(ten[0].vectors, 4);
  EXPECT_EQ(ten[1].first, 4 * n);
  EXPECT_EQ(ten[2].first, 7 * n);
  EXPECT_EQ(ten[2].vectors, 3);
}

TEST(Pack, LanesThereAndBack) {
  for (const Index count : {Index(1), n / 2, n - 1, n, n + 1, 3 * n}) {
    for (const Index columns : {Index(1), n / 2, n, n + 3, 2 * n - 1}) {
      for (const bool turned : {false, true}) {
        const auto x = numbers((count + 2) * columns);
        const Slab<const float> slab{x.data(), turned ? 1 : columns, turned ? count + 2 : 1};
        const Index lanes = (count + n - 1) / n * n;
        std::vector<float> panel(at(lanes * columns)), out(x.size(), 99), twos(at(lanes), 2);
        pack_lanes(slab, 2, count, columns, lanes, panel.data(), 3.F);
        for (Index c = 0; c < columns; ++c) {
          for (Index lane = 0; lane < lanes; ++lane) {
            EXPECT_EQ(panel[at(c * lanes + lane)], 3 * slab(2 + std::min(lane, count - 1), c));
          }
        }
        const Slab<float> to{out.data(), slab.row_stride, slab.column_stride};
        const auto finite =
            unpack_lanes(panel.data(), twos.data(), lanes, count, columns, to, Index(2));
        EXPECT_EQ(sum_of_lanes(finite), 0);
        for (Index i = 0; i < count + 2; ++i) {
          for (Index c = 0; c < columns; ++c) EXPECT_EQ(to(i, c), i < 2 ? 99 : 6 * slab(i, c));
        }
        for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
          panel[at((columns - 1) * lanes)] = bad;
          EXPECT_FALSE(sum_of_lanes(unpack_lanes(panel.data(), twos.data(), lanes, count, columns,
                                                 to, Index(2))) == 0);
        }
      }
    }
  }
}

TEST(Pack, FeaturesThereAndBack) {
  const Index rows = 5;
  for (const Index columns : {Index(1), n, 2 * n + 1, 4 * n}) {
    const auto x = numbers(rows * columns);
    const Slab<const float> slab{x.data(), columns, 1};
    std::vector<float> packed(at(padded<float>(columns) * rows), 99), out(x.size());
    pack_features<Panels<float>>(slab, 0, rows, columns, rows, packed.data());
    for (Index r = 0; r < rows; ++r) {
      for (Index c = 0; c < columns; ++c) {
        EXPECT_EQ(packed[at(feature_offset<Panels<float>, float>(columns, rows, r, c))],
                  slab(r, c));
      }
    }
    const Slab<float> to{out.data(), columns, 1};
    unpack_features<Panels<float>>(static_cast<const float*>(packed.data()), 1, 0, rows, columns,
                                   to, 0, rows, 0);
    EXPECT_EQ(out, x);
  }
}

TEST(RegisterTile, ProductOfWeightsAndRows) {
  constexpr int vectors = 2;
  constexpr Index lanes = vectors * n;
  for (const Index count : {1, 5, 64}) {
    for (const Index width : {1, 7, 12, 33}) {
      const auto weights = numbers(count * lanes), values = numbers(count * width, 1);
      std::vector<float> result(at(width * lanes), 2), factor(at(lanes), 3);
      add_product<vectors>(weights.data(), Rows<float>{values.data(), width}, count, width,
                           factor.data(), result.data());
      for (Index c = 0; c < width; ++c) {
        for (Index lane = 0; lane < lanes; ++lane) {
          float sum = 6;
          for (Index r = 0; r < count; ++r) {
            sum += weights[at(r * lanes + lane)] * values[at(r * width + c)];
          }
          EXPECT_EQ(result[at(c * lanes + lane)], sum);
        }
      }
    }
  }
}

TEST(OuterProduct, SumsOverQueriesPanelByPanel) {
  // Four panels of three vectors, the last one with a query less; whole numbers, so sums are exact.
  const Index panel_lanes = 3 * n, panels = 4, rows = 9, queries = panels * panel_lanes;
  std::vector<QueryPanel> of;
  for (Index p = 0; p < panels; ++p) {
    of.push_back(
        {p * panel_lanes, panel_lanes, panel_lanes - (p == panels - 1), p == 1 ? 4 : rows});
  }
  auto pairs = numbers(rows * queries);
  // Rows that a panel is not concerned with are 0 in it.
  std::fill(pairs.begin() + of[1].first * rows + 4 * of[1].lanes,
            pairs.begin() + of[1].first * rows + rows * of[1].lanes, 0.F);
  using Features = FeaturePanels<float>;
  for (const Index columns : {2 * n, 4 * n, 5 * n}) {
    const auto features = numbers(queries * columns, 2);
    // Sums in panels, and in rows of a wider tensor.
    for (const Index stride : {Index(0), columns + 3}) {
      for (const bool fresh : {true, false}) {
        std::vector<float> sums(at(rows * (columns + 3)), 5);
        const FeatureRows<float> to{sums.data(), stride == 0 ? rows : 1, stride};
        add_outer(of.data(), panels, pairs.data(), rows, rows, features.data(), queries, columns,
                  to, 0, fresh);
        for (Index j = 0; j < rows; ++j) {
          for (Index c = 0; c < columns; ++c) {
            float sum = fresh ? 0 : 5;
            for (const QueryPanel& panel : of) {
              for (Index i = 0; i < panel.count; ++i) {
                sum += pairs[at(panel.first * rows + j * panel.lanes + i)] *
                       features[at(
                           feature_offset<Features, float>(columns, queries, panel.first + i, c))];
              }
            }
            EXPECT_EQ(feature<Features>(to, columns, j, c), sum) << j << ' ' << c;
          }
          if (stride != 0) {
            EXPECT_EQ(sums[at(j * stride + columns)], 5);  // not the row's own
          }
        }
        clear_features<Features>(to, columns, 2, 3);
        for (Index j = 1; j < 6; ++j) {
          EXPECT_EQ(feature<Features>(to, columns, j, columns - 1) == 0, 2 <= j && j < 5);
        }
      }
    }
  }
}

TEST(OnlineSoftmax, OfTilesIsThatOfAll) {
  OnlineSoftmax<float, 1, NaturalUnit> softmax;
  double sum = 0, largest = -1e9;
  std::vector<double> all;
  for (const Index keys : {1, 15, 16, 17, 40}) {
    std::vector<float> scores = numbers(keys * n), most(at(n));
    for (Index lane = 0; lane < n; ++lane) {
      float x = -100;
      for (Index j = 0; j < keys; ++j) x = std::max(x, scores[at(j * n + lane)]);
      most[at(lane)] = x;
    }
    for (Index j = 0; j < keys; ++j) all.push_back(static_cast<double>(scores[at(j * n)]));
    softmax.absorb(scores.data(), keys, most.data());
  }
  for (const double x : all) largest = std::max(largest, x);
  for (const double x : all) sum += std::exp(x - largest);
  EXPECT_EQ(static_cast<double>(softmax.largest[0]), largest);
  EXPECT_NEAR(static_cast<double>(softmax.sum[0]), sum, 1e-6 * sum);
  float lse[at(n)];
  softmax.log_sum_exp(0).store(lse);
  EXPECT_NEAR(static_cast<double>(lse[0]), largest + std::log(sum), 1e-6);
  // Lanes that have seen no key.
  OnlineSoftmax<float, 1, BinaryUnit> empty;
  empty.log_sum_exp(0).store(lse);
  EXPECT_EQ(lse[0], -std::numeric_limits<float>::infinity());
  empty.normaliser(0, 1).store(lse);
  EXPECT_EQ(lse[0], 0);
}

TEST(QuerySums, OfPartsMerge) {
  // Scores 1 and 2 with values 3 and 5, then score 4 with value 7.
  const Index width = n;
  std::vector<float> memory(at(2 * QuerySums<float, NaturalUnit>::size(width)));
  const QuerySums<float, NaturalUnit> a(memory.data(), width),
      b(memory.data() + QuerySums<float, NaturalUnit>::size(width), width);
  a.clear();
  b.clear();
  const auto take = [&](const auto& sums, std::vector<float> scores,
                        const std::vector<float>& values) {
    const auto count = static_cast<Index>(scores.size());
    scores.resize(at(n * 2));
    std::vector<float> rows;
    for (const float v : values) rows.insert(rows.end(), at(width), v);
    const float fade = sums.absorb(scores.data(), count);
    Ahead ahead;
    add_weighted<1>(scores.data(), 0, 1, detail::Run<float>{rows.data(), width, 1, count}, count,
                    width, &fade, ahead, sums.output, 0);
  };
  take(a, {1, 2}, {3, 5});
  take(b, {4}, {7});
  a.merge(b);
  const double e1 = std::exp(-3.), e2 = std::exp(-2.), total = e1 + e2 + 1;
  EXPECT_NEAR(static_cast<double>(a.output[0]) / static_cast<double>(*a.sum),
              (3 * e1 + 5 * e2 + 7) / total, 1e-6);
  EXPECT_NEAR(static_cast<double>(a.log_sum_exp()), 4 + std::log(total), 1e-6);
}

TEST(FewQueries, ScoresAreDotProducts) {
  struct Dot {
    L step(L sum, L q, L k, Index) const { return fma(q, k, sum); }
    L finish(L sum) const { return sum; }
  };
  const Index width = 3 * n;
  const auto query = numbers(width);
  for (const Index keys : {Index(1), n - 1, n + 2}) {
    const auto key = numbers(keys * width, 4);
    std::vector<float> scores(at(2 * n));
    const detail::Run<float> rows{key.data(), width, 1, keys};
    Ahead ahead;
    score_keys(Dot(), query.data(), rows, keys, width, ahead, scores.data());
    // The same query in every lane of a block, times the number of its lane.
    std::vector<float> panel(at(width * n)), block(at(keys * n)), largest(at(n));
    for (Index c = 0; c < width; ++c) {
      for (Index lane = 0; lane < n; ++lane) {
        panel[at(c * n + lane)] = query[at(c)] * static_cast<float>(lane);
      }
    }
    score_block(Dot(), panel.data(), rows, keys, width, ahead, block.data(), largest.data());
    float most = -1e9F;
    for (Index j = 0; j < keys; ++j) {
      float sum = 0;
      for (Index c = 0; c < width; ++c) sum += query[at(c)] * key[at(j * width + c)];
      EXPECT_EQ(scores[at(j)], sum);
      for (Index lane = 0; lane < n; ++lane) {
        EXPECT_EQ(block[at(j * n + lane)], sum * static_cast<float>(lane));
      }
      most = std::max(most, sum);
    }
    EXPECT_EQ(largest[at(n - 1)], most * static_cast<float>(n - 1));
  }
}

TEST(FewQueries, SumsAcrossLanes) {
  // Lane l of vector i is i * i + l, and the sum of its lanes n i^2 + n (n - 1) / 2.
  L x[at(n)];
  for (Index i = 0; i < n; ++i) x[i] = L::counting(i * i);
  std::vector<float> sums(at(n));
  sums_across(x).store(sums.data());
  for (Index i = 0; i < n; ++i) {
    EXPECT_EQ(sums[at(i)], static_cast<float>(n * i * i + n * (n - 1) / 2));
  }
}

TEST(FewQueries, WeightedSumsOfSeveral) {
  // Values of key j are j + 1 + feature, the weight of key j for query q is 1 if q <= j: the sum
  // over keys q .. 8 of (j + 1 + c), added to half of an output of 2.
  const Index keys = 9;
  for (const Index width : {n, 5 * n}) {
    std::vector<float> values(at(keys * width)), weights(at(keys * 4)), out(at(4 * width), 2.F);
    for (Index j = 0; j < keys; ++j) {
      for (Index c = 0; c < width; ++c) values[at(j * width + c)] = static_cast<float>(j + 1 + c);
      for (Index q = 0; q < 4; ++q) weights[at(j * 4 + q)] = q <= j ? 1.F : 0.F;
    }
    const std::array<float, 4> fade{.5F, .5F, .5F, .5F};
    Ahead ahead;
    add_weighted<4>(weights.data(), 1, 4, detail::Run<float>{values.data(), width, 1, keys}, keys,
                    width, fade.data(), ahead, out.data(), width);
    for (Index q = 0; q < 4; ++q) {
      for (Index c = 0; c < width; ++c) {
        float sum = 1;
        for (Index j = q; j < keys; ++j) sum += static_cast<float>(j + 1 + c);
        EXPECT_EQ(out[at(q * width + c)], sum);
      }
    }
  }
}

TEST(SoftmaxRow, OfAnyLength) {
  for (Index count = 1; count <= 9 * n + 1; count += count < 2 * n ? 1 : n - 1) {
    auto row = numbers(count);
    row[at(count / 2)] = -std::numeric_limits<float>::infinity();
    const auto scores = row;
    double sum = 0;
    for (const float s : scores) sum += std::exp(static_cast<double>(s));
    softmax_row(scores.data(), row.data(), row.data(), count);
    for (Index j = 0; j < count; ++j) {
      const double expected = sum > 0 ? std::exp(static_cast<double>(scores[at(j)])) / sum : 0;
      EXPECT_NEAR(static_cast<double>(row[at(j)]), expected, 3e-7) << count << ' ' << j;
    }
  }
}

TEST(Gemm, OfAwkwardSizes) {
  for (const auto& [m, k, columns] : {std::array<Index, 3>{1, 1, 1},
                                      {n + 1, 2 * n - 1, 3 * n + 2},
                                      {97, 130, 3 * n},
                                      {25, 3, 7 * n}}) {
    const auto a = numbers(m * k), b = numbers(k * columns, 1);
    std::vector<float> c(at(m * columns), 77);
    multiply(View<const float, 4>{a.data(), {1, 1, m, k}, {0, 0, k, 1}},
             View<const float, 4>{b.data(), {1, 1, k, columns}, {0, 0, columns, 1}},
             View<float, 4>{c.data(), {1, 1, m, columns}, {0, 0, columns, 1}}, nullptr);
    for (Index i = 0; i < m; ++i) {
      for (Index j = 0; j < columns; ++j) {
        float sum = 0;
        for (Index d = 0; d < k; ++d) sum += a[at(i * k + d)] * b[at(d * columns + j)];
        EXPECT_EQ(c[at(i * columns + j)], sum);
      }
    }
  }
}

}  // namespace
}  // namespace heed::detail
