#include "mask_support.hpp"

namespace heed::test {
namespace {

/// Runs one composition over all lengths; `build` makes the mask and its predicate for a shape.
template <class Build>
void over_lengths(Build build) {
  for (const auto& [queries, keys] : lengths) build(Shape{2, 2, queries, keys});
}

const std::vector<int> lens = {5, 100};
bool within_lens(Index b, Index j) { return j < lens[static_cast<std::size_t>(b)]; }

TEST(Compositions, CausalAndLengths) {
  over_lengths([](const Shape& s) {
    expect_mask(s, causal() && valid_lens(lens), [=](Index b, Index, Index i, Index j) {
      return j <= i + s[3] - s[2] && within_lens(b, j);
    });
  });
}

TEST(Compositions, PrefixOrCausalIsThePrefixLanguageModel) {
  over_lengths([](const Shape& s) {
    expect_mask(s, prefix(20) || causal(),
                [=](Index, Index, Index i, Index j) { return j < 20 || j <= i + s[3] - s[2]; });
  });
}

TEST(Compositions, NotOfAnInterval) {
  over_lengths([](const Shape& s) {
    expect_mask(s, !causal(Align::top_left), [](Index, Index, Index i, Index j) { return j > i; });
    expect_mask(s, !sliding_window(3, 40, Align::top_left),
                [](Index, Index, Index i, Index j) { return j < i - 3 || j > i + 40; });
  });
}

TEST(Compositions, NotOfEverythingAndOfNothing) {
  over_lengths([](const Shape& s) {
    expect_mask(s, !no_mask(), [](Index, Index, Index, Index) { return false; });
    expect_mask(s, causal() || !causal(), everything());
  });
}

TEST(Compositions, DisjointIntervals) {
  over_lengths([](const Shape& s) {
    // A local window beside a global prefix leaves a gap that a hull of both would fill.
    expect_mask(s, prefix(3) || sliding_window(2, 2), [=](Index, Index, Index i, Index j) {
      const Index p = i + s[3] - s[2];
      return j < 3 || (p - 2 <= j && j <= p + 2);
    });
    expect_mask(s, (prefix(3) || sliding_window(2, 2)) && causal(),
                [=](Index, Index, Index i, Index j) {
                  const Index p = i + s[3] - s[2];
                  return (j < 3 || (p - 2 <= j && j <= p + 2)) && j <= p;
                });
  });
}

TEST(Compositions, Nested) {
  over_lengths([](const Shape& s) {
    const Index queries = s[2], keys = s[3];
    std::vector<int> query_ids, key_ids;
    for (Index i = 0; i < queries; ++i) query_ids.push_back(static_cast<int>(i / 20));
    for (Index j = 0; j < keys; ++j) key_ids.push_back(static_cast<int>(j / 30));
    const auto same_id = [=](Index i, Index j) {
      return query_ids[static_cast<std::size_t>(i)] == key_ids[static_cast<std::size_t>(j)];
    };
    expect_mask(s, segments(query_ids, key_ids) && causal(Align::top_left),
                [=](Index, Index, Index i, Index j) { return same_id(i, j) && j <= i; });
    expect_mask(s, !(segments(query_ids, key_ids) && sliding_window(10, -1)) && valid_lens(lens),
                [=](Index b, Index, Index i, Index j) {
                  return !(same_id(i, j) && j >= i + keys - queries - 10) && within_lens(b, j);
                });
  });
}

TEST(Compositions, OfUserMasksWithIntervals) {
  const auto f = [](Index b, Index h, Index i, Index j) { return (b + h + i + j) % 3 != 0; };
  over_lengths([&](const Shape& s) {
    expect_mask(s, mask_if(f) && causal(), [=](Index b, Index h, Index i, Index j) {
      return f(b, h, i, j) && j <= i + s[3] - s[2];
    });
    expect_mask(s, valid_lens(lens) || !mask_if(f), [=](Index b, Index h, Index i, Index j) {
      return within_lens(b, j) || !f(b, h, i, j);
    });
  });
}

TEST(Compositions, OfTensorsWithIntervals) {
  over_lengths([](const Shape& s) {
    Matrix<bool> allowed(s[2], s[3]);
    for_each_index(s, [&](Index, Index, Index i, Index j) { allowed(i, j) = (i ^ j) % 5 != 0; });
    expect_mask(s, allow(allowed) && !prefix(4),
                [&](Index, Index, Index i, Index j) { return allowed(i, j) && j >= 4; });
    expect_mask(s, !allow(allowed) || sliding_window(0, 0), [&](Index, Index, Index i, Index j) {
      return !allowed(i, j) || j == i + s[3] - s[2];
    });
  });
}

// Temporaries that own their elements live on inside the mask.
TEST(Compositions, KeepTheirTemporaries) {
  const auto build = [] {
    return valid_lens(std::vector<Index>{7, 3}) &&
           allow(Matrix<bool>(Matrix<bool>::Constant(1, 9, true))) && causal();
  };
  const auto mask = build();
  std::vector<std::vector<Index>> overwritten(100, std::vector<Index>(2, 0));
  expect_mask({2, 1, 9, 9}, mask,
              [](Index b, Index, Index i, Index j) { return j < (b == 0 ? 7 : 3) && j <= i; });
}

}  // namespace
}  // namespace heed::test
