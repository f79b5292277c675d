#pragma once

#include <algorithm>
#include <Eigen/Core>

#include "heed/kernel/panels.hpp"
#include "heed/policy/problem.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// How the fused engine divides the keys of a call forwards: by what the caches hold.
template <class Number>
struct KeyBlocks {
  /// Whether panels may share blocks is the caller's to say: of scores that take longer than to
  /// fetch a row there is nothing to gain.
  KeyBlocks(const Problem& problem, bool shared)
      : tile(std::min(keys_of_tile(problem), problem.keys)),
        block(shared ? keys_of_block(problem) : problem.keys),
        panels(block < problem.keys ? panels_of_block(problem) : 1),
        copied(problem.keys * (problem.key_dim + problem.value_dim) <= copied_numbers ? problem.keys
                                                                                      : tile) {}

  static constexpr Index most_panels = 8;

  Index tile;    ///< keys of a tile
  Index block;   ///< keys that several panels take in turn, whole tiles or all
  Index panels;  ///< as many as do so
  Index copied;  ///< keys that are copied at once, where they cannot be read in place

 private:
  static constexpr Index number_bytes = static_cast<Index>(sizeof(Number));
  static constexpr Index lane_bytes = Panels<Number>::widest * Lanes<Number>::size * number_bytes;
  static Index second_level() { return static_cast<Index>(Eigen::l2CacheSize()); }

  /// Keys and values that cannot be read in place are copied a head at a time where that is no more
  /// than this (4 MiB of floats), so that all panels share the copy, and else tile by tile.
  static constexpr Index copied_numbers = Index(1) << 20;

  /// As many as leave the scores in the first-level cache beside the packed queries and the output
  /// panel, within 120 .. 144 and a whole number of register tiles. Fewer are soon done beside what
  /// a tile costs; of more, a steep position bias (alibi with a slope of 1/2) makes weights whose
  /// products with values are subnormal numbers, which take 150 cycles each.
  static Index keys_of_tile(const Problem& problem) {
    const Index beside = (problem.key_dim + problem.value_dim) * lane_bytes;
    const Index cache = static_cast<Index>(Eigen::l1CacheSize());
    return std::clamp<Index>((cache - beside) * 15 / 16 / lane_bytes, 120, 144) / 12 * 12;
  }

  /// All, where they and their values leave a quarter of the second-level cache, and else as many
  /// as take a half of it (2048 for 64 features and 2 MiB).
  Index keys_of_block(const Problem& problem) const {
    if (problem.keys == tile) return problem.keys;
    const Index row = (problem.key_dim + problem.value_dim) * number_bytes;
    if (problem.keys * row <= second_level() / 4 * 3) return problem.keys;
    return std::max<Index>(second_level() / 2 / row / tile, 1) * tile;
  }

  /// As many as have their queries and sums in a quarter of that cache.
  static Index panels_of_block(const Problem& problem) {
    const Index bytes = (problem.key_dim + 2 * problem.value_dim + 2) * lane_bytes;
    return std::clamp<Index>(second_level() / 4 / bytes, 2, most_panels);
  }
};

}  // namespace heed::detail
