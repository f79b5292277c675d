#include "heed/core/schedule.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>
#include <unsupported/Eigen/CXX11/ThreadPool>

namespace heed::detail {
namespace {

/// Whether every piece is run once, for the given (pieces, weight) of each part.
void expect_all(const std::vector<std::pair<Index, Index>>& work, Eigen::ThreadPool* pool) {
  std::vector<WorkPart> parts;
  std::vector<std::vector<std::atomic<int>>> runs;
  for (const auto& [pieces, weight] : work) {
    parts.push_back({static_cast<Index>(parts.size()), pieces, weight, 0});
    runs.emplace_back(static_cast<std::size_t>(pieces));
  }
  parallel_for_parts(pool, parts.data(), static_cast<Index>(parts.size()),
                     [&](Index number, Index first, Index last) {
                       ASSERT_LT(first, last);
                       for (Index piece = first; piece < last; ++piece) {
                         ++runs[static_cast<std::size_t>(number)][static_cast<std::size_t>(piece)];
                       }
                     });
  for (const auto& part : runs) {
    for (const auto& count : part) EXPECT_EQ(count, 1);
  }
}

TEST(Schedule, RunsEveryPieceOnce) {
  for (const int threads : {0, 1, 2, 3, 7}) {
    const auto pool = threads > 0 ? std::make_unique<Eigen::ThreadPool>(threads) : nullptr;
    expect_all({}, pool.get());
    expect_all({{0, 5}}, pool.get());
    expect_all({{1, 1}}, pool.get());
    expect_all({{3, 7}, {0, 9}, {1, 1000}, {0, 1}, {100, 1}, {2, 1000}}, pool.get());
    expect_all(std::vector<std::pair<Index, Index>>(100, {1, 13}), pool.get());
    expect_all({{1, Index(1) << 40}, {1000, 3}}, pool.get());
  }
}

TEST(Schedule, ThePartsOfTheHeaviestPiecesComeFirst) {
  // Two threads may note what they begin in either order.
  Eigen::ThreadPool pool(2);
  std::mutex mutex;
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::vector<WorkPart> parts{{0, 20, 3, 0}, {1, 1, 50, 0}, {2, 40, 3, 0}, {3, 1, 7, 0}};
    std::vector<Index> order;
    parallel_for_parts(&pool, parts.data(), 4, [&](Index number, Index, Index) {
      const std::lock_guard lock(mutex);
      order.push_back(number);
    });
    ASSERT_GE(order.size(), 4U);
    EXPECT_TRUE(order[0] == 1 || order[1] == 1);
    EXPECT_EQ(parts[0].number, 1);
    EXPECT_EQ(parts[1].number, 3);
    EXPECT_EQ(parts[2].number, 0);
    EXPECT_EQ(parts[3].before, 50 + 7 + 20 * 3);
  }
}

TEST(Schedule, OneThreadKeepsTheOrder) {
  std::vector<WorkPart> parts{{0, 2, 3, 0}, {1, 1, 50, 0}, {2, 0, 3, 0}, {3, 1, 7, 0}};
  std::vector<Index> order;
  parallel_for_parts(nullptr, parts.data(), 4, [&](Index number, Index first, Index last) {
    EXPECT_EQ(first, 0);
    EXPECT_EQ(last, number == 0 ? 2 : 1);
    order.push_back(number);
  });
  EXPECT_EQ(order, (std::vector<Index>{0, 1, 3}));
}

}  // namespace
}  // namespace heed::detail
