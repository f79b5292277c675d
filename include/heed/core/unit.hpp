#pragma once

namespace heed {

/// The units of a bound score, which are part of its type. `factor` is what a score is multiplied
/// by to be in this unit, `binary` what a difference of two such scores is multiplied by to be an
/// exponent of 2.

/// Scores as they are. The difference to the maximum is multiplied, not the score: it is the
/// smaller of the two, and so is its rounding error.
struct NaturalUnit {
  static constexpr double factor = 1;
  static constexpr double binary = 1.4426950408889634074;
};

/// Scores times log2(e), so that e^score is 2^score without a multiplication.
struct BinaryUnit {
  static constexpr double factor = NaturalUnit::binary;
  static constexpr double binary = 1;
};

}  // namespace heed
