#pragma once

#include <mpi.h>
#include <algorithm>
#include <cstddef>
#include <vector>

#include "heed/core/view.hpp"
#include "heed/engine/dispatch.hpp"
#include "heed/mpi/communicator.hpp"
#include "heed/mpi/placed.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/parameters.hpp"
#include "heed/policy/problem.hpp"

namespace heed::detail {

/// What a rank's pairs add to the gradients of trained parameters, apart from the user's memory
/// until all ranks have done their part. `Score` is the score bound to the whole sequences.
template <class Score>
class TrainedGradients {
 public:
  TrainedGradients(const Score& score, const Problem& problem) : score_(score), problem_(problem) {
    for_each_trained(score_, [this](std::size_t, const auto& bound) {
      using Element = typename std::remove_cvref_t<decltype(bound.gradient)>::Scalar;
      Index low = 0, high = 0;
      const auto& gradient = bound.gradient;
      for (std::size_t axis = 0; axis < gradient.shape.size(); ++axis) {
        const Index reach = std::max<Index>(gradient.shape[axis] - 1, 0) * gradient.strides[axis];
        (reach < 0 ? low : high) += reach;
      }
      memory_.push_back(
          {std::vector<std::byte>(static_cast<std::size_t>(high - low + 1) * sizeof(Element)), -low,
           gradient.data});
    });
  }

  /// Lets a score bound for some of the queries, whose gradients may be moved by whole rows, add to
  /// this memory.
  void redirect(auto& placed) {
    for_each_trained(placed, [this](std::size_t n, auto& bound) {
      using Element = typename std::remove_cvref_t<decltype(bound.gradient)>::Scalar;
      Memory& to = memory_[n];
      bound.gradient.data = reinterpret_cast<Element*>(to.bytes.data()) + to.first +
                            (bound.gradient.data - static_cast<Element*>(to.users));
    });
  }

  /// Adds the sums over all ranks, taken in their order, to the user's gradients; a gradient that
  /// has the rows of this rank's queries alone is this rank's alone. Collective.
  void add(const Communicator& ranks) const {
    for_each_trained(score_, [&](std::size_t n, const auto& bound) {
      const auto users = spread(bound.gradient);
      using Element = typename std::remove_const_t<decltype(users)>::Scalar;
      auto own = users;
      auto* const bytes = const_cast<std::byte*>(memory_[n].bytes.data());
      own.data = reinterpret_cast<Element*>(bytes) + memory_[n].first;
      std::vector<Element> sums;
      sums.reserve(static_cast<std::size_t>(own.size()));
      for_each_row(own.shape, [&](Index b, Index h, Index i) {
        for (Index j = 0; j < own.shape[3]; ++j) sums.push_back(own(b, h, i, j));
      });
      const bool rows_of_rank =
          bound.gradient.Rank == 4 && own.shape[2] == problem_.own_queries && own.shape[2] > 1;
      if (!rows_of_rank) add_up(ranks, sums);
      std::size_t at = 0;
      for_each_row(own.shape, [&](Index b, Index h, Index i) {
        for (Index j = 0; j < own.shape[3]; ++j) {
          add_to(users(b, h, i, j), static_cast<Accumulator<Element>>(sums[at++]));
        }
      });
    });
  }

 private:
  struct Memory {
    std::vector<std::byte> bytes;
    Index first;  // where the element is that the gradient's data points to
    void* users;
  };

  static void for_each_trained(auto& score, const auto& body) {
    std::size_t n = 0;
    for_each_bound(score, [&]<class Bound>(Bound& bound) {
      if constexpr (trained<std::remove_const_t<Bound>>) body(n++, bound);
    });
  }

  /// Each rank adds its numbers to those of the ranks before it; the last one has the sums.
  template <class Element>
  static void add_up(const Communicator& ranks, std::vector<Element>& numbers) {
    constexpr auto size = static_cast<Index>(sizeof(Element));
    std::vector<Element> before(ranks.rank() > 0 ? numbers.size() : 0);
    const auto in_messages = [&](std::vector<Element>& x, const auto& body) {
      auto* const bytes = reinterpret_cast<std::byte*>(x.data());
      for_each_message(static_cast<Index>(x.size()) * size,
                       [&](Index at, int count) { body(bytes + at, count); });
    };
    const int rank = static_cast<int>(ranks.rank()), last = static_cast<int>(ranks.size()) - 1;
    in_messages(before, [&](std::byte* at, int count) {
      ranks.check("MPI_Recv",
                  MPI_Recv(at, count, MPI_BYTE, rank - 1, 0, ranks.get(), MPI_STATUS_IGNORE));
    });
    for (std::size_t n = 0; n < before.size(); ++n) {
      using Number = Accumulator<Element>;
      numbers[n] =
          static_cast<Element>(static_cast<Number>(before[n]) + static_cast<Number>(numbers[n]));
    }
    if (rank < last) {
      in_messages(numbers, [&](std::byte* at, int count) {
        ranks.check("MPI_Send", MPI_Send(at, count, MPI_BYTE, rank + 1, 0, ranks.get()));
      });
    }
    in_messages(numbers, [&](std::byte* at, int count) {
      ranks.check("MPI_Bcast", MPI_Bcast(at, count, MPI_BYTE, last, ranks.get()));
    });
  }

  const Score& score_;
  const Problem& problem_;
  std::vector<Memory> memory_;
};

}  // namespace heed::detail
