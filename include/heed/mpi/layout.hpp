#pragma once

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"

namespace heed {

/// How a sequence is split over R ranks.
enum class SequenceLayout {
  contiguous,  ///< rank r has the r-th of R chunks
  zigzag       ///< rank r has the chunks r and 2R-1-r of 2R, which balances causal masks
};

namespace detail {

/// The chunks of a sequence: where each stands, and who has it. A rank's piece is its chunks one
/// after the other, in the order of their numbers.
struct Chunks {
  SequenceLayout layout;
  Index ranks, rows;  // rows of a chunk

  /// `piece`: rows of a rank's piece, a multiple of of_rank().
  static Chunks of_piece(SequenceLayout layout, Index ranks, Index piece) {
    return {layout, ranks, piece / (layout == SequenceLayout::zigzag ? 2 : 1)};
  }

  Index of_rank() const { return layout == SequenceLayout::zigzag ? 2 : 1; }
  Index count() const { return ranks * of_rank(); }
  Index total() const { return count() * rows; }
  /// The number of a rank's n-th chunk.
  Index number(Index rank, Index n) const { return n == 0 ? rank : 2 * ranks - 1 - rank; }
  Index owner(Index chunk) const { return chunk < ranks ? chunk : 2 * ranks - 1 - chunk; }
  /// The position of a chunk's first row.
  Index first(Index chunk) const { return chunk * rows; }
};

/// Refuses a layout that is none, and rows that do not divide into `parts` chunks.
inline void check_layout(const char* function, SequenceLayout layout) {
  if (layout != SequenceLayout::contiguous && layout != SequenceLayout::zigzag) {
    fail(function, "the layout ", static_cast<Index>(layout), " is none");
  }
}
inline void check_divides(const char* function, const char* name, Index rows, Index parts) {
  if (rows % parts != 0) {
    fail(function, name, " has ", rows, " rows, which do not divide into ", parts, " chunks");
  }
}

}  // namespace detail
}  // namespace heed
