#pragma once

#include <mpi.h>
#include <array>
#include <cstddef>
#include <type_traits>
#include <vector>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/mpi/agreement.hpp"
#include "heed/mpi/communicator.hpp"
#include "heed/mpi/layout.hpp"

namespace heed {

/// A rank's piece of a sequence that is split over the ranks of a communicator.
template <class Piece>
struct Sharded {
  Piece piece;
  MPI_Comm communicator;
  SequenceLayout layout;
};

namespace detail {

template <class T>
inline constexpr bool is_sharded = false;
template <class Piece>
inline constexpr bool is_sharded<Sharded<Piece>> = true;

/// A tensor, or the piece of a Sharded.
template <class T>
const auto& piece_of(const T& x) {
  if constexpr (is_sharded<T>) {
    return x.piece;
  } else {
    return x;
  }
}

/// What ranks have to agree on for a tensor that is split.
template <class T>
CallNumbers numbers_of(const char* function, const T& x, SequenceLayout layout) {
  const auto wide = rank4(x);
  CallNumbers result;
  result.numbers = {static_cast<Index>(std::char_traits<char>::length(function)),
                    static_cast<Index>(rank_of<T>),
                    wide.shape[0],
                    wide.shape[1],
                    wide.shape[1],
                    wide.shape[2],
                    wide.shape[2],
                    wide.shape[3],
                    wide.shape[3],
                    wide.shape[3],
                    static_cast<Index>(sizeof(ScalarOf<T>)),
                    static_cast<Index>(layout)};
  return result;
}

}  // namespace detail

/// Each rank's piece of a tensor (..., seq, dim) that every rank has as a whole: for tests and for
/// sequences that fit one machine. Contiguous: rows r n .. (r + 1) n - 1 of R n; zigzag: the chunks
/// r and 2R-1-r of 2R. Collective; std::invalid_argument on all ranks where the sequence does not
/// divide into the chunks, or a rank's tensor has another shape.
template <class T>
auto shard(const T& x, MPI_Comm communicator, SequenceLayout layout) {
  static_assert(detail::rank_of<T> >= 2, "heed: shard takes a tensor of rank 2 to 4");
  constexpr const char* function = "shard";
  const detail::Communicator ranks(function, communicator);
  detail::Agreement agreement(ranks);
  const auto from = view(x);
  constexpr std::size_t seq = detail::rank_of<T> - 2;
  agreement.attempt([&] {
    detail::check_layout(function, layout);
    detail::check_extents(function, "the tensor", from.shape);
    detail::check_divides(function, "the tensor", from.shape[seq],
                          ranks.size() * detail::Chunks::of_piece(layout, 1, 2).of_rank());
  });
  agreement.settle(detail::numbers_of(function, x, layout));
  auto shape = from.shape;
  shape[seq] /= ranks.size();
  Sharded<decltype(detail::make_result<detail::ScalarOf<T>, T>(shape))> result{
      detail::make_result<detail::ScalarOf<T>, T>(shape), communicator, layout};
  const auto chunks = detail::Chunks::of_piece(layout, ranks.size(), shape[seq]);
  const auto all = detail::rank4(x);
  const auto piece = detail::rank4(result.piece);
  detail::for_each_row(piece.shape, [&](Index b, Index h, Index i) {
    const Index first = chunks.first(chunks.number(ranks.rank(), i / chunks.rows));
    for (Index c = 0; c < piece.shape[3]; ++c) {
      piece(b, h, i, c) = all(b, h, first + i % chunks.rows, c);
    }
  });
  return result;
}

/// The whole tensor, on every rank, from each rank's piece of it. Collective;
/// std::invalid_argument on all ranks where a rank's piece has another shape.
template <class T>
auto gather(const T& piece, MPI_Comm communicator, SequenceLayout layout) {
  constexpr const char* function = "gather";
  using Element = detail::ScalarOf<T>;
  const detail::Communicator ranks(function, communicator);
  detail::Agreement agreement(ranks);
  const auto own = detail::rank4(piece);
  constexpr std::size_t seq = detail::rank_of<T> - 2;
  auto shape = view(piece).shape;
  const auto chunks = detail::Chunks::of_piece(layout, ranks.size(), own.shape[2]);
  std::vector<Element> mine, all;
  agreement.attempt([&] {
    detail::check_layout(function, layout);
    detail::check_extents(function, "the piece", shape);
    detail::check_divides(function, "the rank's piece", own.shape[2], chunks.of_rank());
    shape[seq] *= ranks.size();
    detail::check_extents(function, "the tensor", shape);
    mine.resize(static_cast<std::size_t>(own.size()));
    all.resize(mine.size() * static_cast<std::size_t>(ranks.size()));
  });
  agreement.settle(detail::numbers_of(function, piece, layout));
  auto result = detail::make_result<Element, T>(shape);
  std::size_t at = 0;
  detail::for_each_row(own.shape, [&](Index b, Index h, Index i) {
    for (Index c = 0; c < own.shape[3]; ++c) mine[at++] = own(b, h, i, c);
  });
  // Row by row of bytes: a type of a whole piece keeps the count within an int.
  MPI_Datatype row = MPI_DATATYPE_NULL;
  const auto row_bytes = static_cast<int>(own.shape[3]) * static_cast<int>(sizeof(Element));
  const auto rows = static_cast<int>(own.shape[0] * own.shape[1] * own.shape[2]);
  ranks.check("MPI_Type_contiguous", MPI_Type_contiguous(row_bytes, MPI_BYTE, &row));
  ranks.check("MPI_Type_commit", MPI_Type_commit(&row));
  const int code = MPI_Allgather(mine.data(), rows, row, all.data(), rows, row, ranks.get());
  MPI_Type_free(&row);
  ranks.check("MPI_Allgather", code);
  const auto to = detail::rank4(result);
  at = 0;
  for (Index rank = 0; rank < ranks.size(); ++rank) {
    detail::for_each_row(own.shape, [&](Index b, Index h, Index i) {
      const Index first = chunks.first(chunks.number(rank, i / chunks.rows));
      for (Index c = 0; c < own.shape[3]; ++c) to(b, h, first + i % chunks.rows, c) = all[at++];
    });
  }
  return result;
}
template <class Piece>
auto gather(const Sharded<Piece>& x) {
  return gather(x.piece, x.communicator, x.layout);
}

}  // namespace heed
