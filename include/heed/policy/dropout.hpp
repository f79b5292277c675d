#pragma once

#include <cstdint>

#include "heed/core/error.hpp"

namespace heed {

using Eigen::Index;

/// Which weights dropout keeps: a function of (seed, batch, head, query, key) alone, so that
/// neither tiles nor threads nor the order of the work can change the pattern.
class Dropout {
 public:
  /// probability that a weight is dropped, in [0, 1), else std::invalid_argument.
  Dropout(const char* function, double probability, std::uint64_t seed)
      : threshold_(probability * 18446744073709551616.0), seed_(seed) {
    if (!(probability >= 0 && probability < 1)) {
      detail::fail(function, "dropout is ", probability, ", outside [0, 1)");
    }
    scale_ = 1 / (1 - probability);
  }

  bool active() const { return threshold_ > 0; }
  /// What kept weights are multiplied by: 1 / (1 - probability).
  double scale() const { return scale_; }

  /// The same pattern for who counts queries and keys from these ones on.
  Dropout from(Index query, Index key) const {
    Dropout part = *this;
    part.first_query_ += query;
    part.first_key_ += key;
    return part;
  }

  /// The same pattern for who counts keys without a gap of `missing` ones before number `at`.
  Dropout with_gap(Index at, Index missing) const {
    Dropout part = *this;
    part.gap_at_ = at;
    part.gap_ = missing;
    return part;
  }

  /// The part of the counter that a query shares with all its keys.
  std::uint64_t row(Index batch, Index head, Index query) const {
    return mix(mix(mix(seed_ + step * word(batch)) + step * word(head)) +
               step * word(first_query_ + query));
  }
  bool keeps(std::uint64_t row, Index key) const {
    const Index number = first_key_ + key + (key < gap_at_ ? 0 : gap_);
    return static_cast<double>(mix(row + step * word(number))) >= threshold_;
  }

 private:
  // The finaliser of SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number
  // generators" (2014).
  static constexpr std::uint64_t step = 0x9e3779b97f4a7c15;
  static std::uint64_t mix(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }
  static std::uint64_t word(Index i) { return static_cast<std::uint64_t>(i) + 1; }

  double threshold_;
  double scale_ = 1;
  std::uint64_t seed_;
  Index first_query_ = 0, first_key_ = 0;
  Index gap_at_ = 0, gap_ = 0;
};

}  // namespace heed
