// Every score and modifier, split over ranks: as on one machine, with the gradients of parameters.

#include "support.hpp"

namespace heed {
namespace {

using namespace test;

Tensor<double, 4> pairs(const Shape& shape, std::uint64_t seed) {
  return make<double, 4>(random(shape, seed));
}

/// A parameter and the places of its gradients, which begin at one half: gradients are added.
template <class T>
struct Parameter {
  T value, of_whole, of_ring;

  explicit Parameter(T x) : value(x), of_whole(x), of_ring(x) {
    fill(of_whole);
    fill(of_ring);
  }
  void compare(double bound) {
    EXPECT_TRUE(close(as_tensor(of_ring), as_tensor(of_whole), bound));
    fill(of_ring);
  }

 private:
  static void fill(T& x) { std::fill(x.data(), x.data() + x.size(), .5); }
  static Reference as_tensor(const T& x) {
    return generate({1, 1, 1, x.size()}, [&](Index, Index, Index, Index j) { return x.data()[j]; });
  }
};

Parameter<Vector<double>> vector_of(Index size, std::uint64_t seed) {
  const Reference x = random({1, 1, 1, size}, seed);
  return Parameter<Vector<double>>(Eigen::Map<const Vector<double>>(x.data(), size));
}

TEST(RingScores, DotProductThroughModifiersWithBiasRowsAndSink) {
  const Extents extents;
  auto slopes = vector_of(4, 11), logits = vector_of(4, 12);
  const auto bias_of_all = pairs({2, 4, 96, 96}, 13);
  auto d_bias = bias_of_all;
  d_bias.setConstant(.5);
  std::array<Tensor<double, 4>, 2> rows, d_rows;
  for (const auto layout : layouts) {
    const auto n = static_cast<std::size_t>(layout);
    rows[n] = rows_of_rank(bias_of_all, layout);
    d_rows[n] = rows[n];
    d_rows[n].setConstant(.5);
  }
  const std::vector<int> ids = [] {
    std::vector<int> result;
    for (int i = 0; i < 96; ++i) result.push_back(i / 37);
    return result;
  }();
  const auto mask = [&] { return causal() && segments(ids, ids); };
  expect_ring<double>(
      extents,
      [&] {
        return scaled_dot_product() | softcap(1.5) | alibi(slopes.value, slopes.of_whole) |
               bias(bias_of_all, d_bias) | sink(logits.value, logits.of_whole);
      },
      [&](SequenceLayout layout) {
        const auto n = static_cast<std::size_t>(layout);
        return scaled_dot_product() | softcap(1.5) | alibi(slopes.value, slopes.of_ring) |
               bias(rows[n], d_rows[n]) | sink(logits.value, logits.of_ring);
      },
      mask, [&](SequenceLayout) { return mask(); },
      [&](SequenceLayout layout, double bound) {
        slopes.compare(bound);
        logits.compare(bound);
        EXPECT_TRUE(close(gather(d_rows[static_cast<std::size_t>(layout)], MPI_COMM_WORLD, layout),
                          d_bias, bound));
      });
}

TEST(RingScores, AdditiveWithRelativeBiasAndIndicesInALambda) {
  const Extents extents;
  auto weight = vector_of(extents.dim, 21);
  Parameter<Matrix<double>> table(make<double, 2>(random({1, 1, 4, 8}, 22)));
  const auto by_position = score_mod(
      [](auto s, auto, auto h, auto i, auto j) { return s + (j - i) * .01 * (h + 1) - i * .02; });
  const auto bucket = t5_buckets(8, 40, true);
  const auto mask = [] { return prefix(10) || sliding_window(20, 3); };
  expect_ring<double>(
      extents,
      [&] {
        return additive(weight.value, weight.of_whole) |
               relative_bias(table.value, bucket, table.of_whole) | by_position;
      },
      [&](SequenceLayout) {
        return additive(weight.value, weight.of_ring) |
               relative_bias(table.value, bucket, table.of_ring) | by_position;
      },
      mask, [&](SequenceLayout) { return mask(); },
      [&](SequenceLayout, double bound) {
        weight.compare(bound);
        table.compare(bound);
      });
}

TEST(RingScores, GaussianUnderAllowedPairsGivenAsRows) {
  const Extents extents;
  auto width = vector_of(extents.dim, 31);
  Tensor<bool, 4> allowed(1, 1, 96, 96);
  for (Index i = 0; i < 96; ++i) {
    for (Index j = 0; j < 96; ++j) allowed(0, 0, i, j) = (i * 7 + j * 3) % 5 != 0 && j < i + 40;
  }
  std::array<Tensor<bool, 4>, 2> rows;
  for (const auto layout : layouts) {
    rows[static_cast<std::size_t>(layout)] = rows_of_rank(allowed, layout);
  }
  expect_ring<double>(
      extents, [&] { return gaussian(width.value, width.of_whole); },
      [&](SequenceLayout) { return gaussian(width.value, width.of_ring); },
      [&] { return allow(allowed) && valid_lens({90, 50}); },
      [&](SequenceLayout layout) {
        return allow(rows[static_cast<std::size_t>(layout)]) && valid_lens({90, 50});
      },
      [&](SequenceLayout, double bound) { width.compare(bound); });
}

TEST(RingScores, BilinearWithTheBiasOfAllQueries) {
  const Extents extents{.heads = 2, .kv_heads = 2};
  Parameter<Matrix<double>> matrix(make<double, 2>(random({1, 1, extents.dim, extents.dim}, 41)));
  Parameter<Tensor<double, 4>> added(pairs({2, 1, 96, 96}, 42)), shared(pairs({1, 2, 1, 96}, 43));
  expect_ring<double>(
      extents,
      [&] {
        return bilinear(matrix.value, matrix.of_whole) | bias(added.value, added.of_whole) |
               bias(shared.value, shared.of_whole);
      },
      [&](SequenceLayout) {
        return bilinear(matrix.value, matrix.of_ring) | bias(added.value, added.of_ring) |
               bias(shared.value, shared.of_ring);
      },
      [] { return no_mask(); }, [](SequenceLayout) { return no_mask(); },
      [&](SequenceLayout, double bound) {
        matrix.compare(bound);
        added.compare(bound);
        shared.compare(bound);
      });
}

}  // namespace
}  // namespace heed
