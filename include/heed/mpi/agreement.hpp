#pragma once

#include <mpi.h>
#include <algorithm>
#include <array>
#include <cstddef>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "heed/core/error.hpp"
#include "heed/mpi/communicator.hpp"

namespace heed::detail {

/// What a call is on one rank, in numbers that have to be those of all ranks, and their names.
struct CallNumbers {
  static constexpr std::size_t count = 14;
  std::array<Index, count> numbers{};
  static constexpr std::array<const char*, count> names{"the function",
                                                        "the rank of the tensors",
                                                        "batch",
                                                        "heads",
                                                        "key heads",
                                                        "queries of a rank",
                                                        "keys of a rank",
                                                        "query features",
                                                        "key features",
                                                        "value features",
                                                        "the number types",
                                                        "the layout",
                                                        "the dropout (as the bits of a double)",
                                                        "the seed of the dropout"};
};

/// Whether a call has failed on some rank, of which all learn. What may throw on one rank runs
/// through attempt(), after which the rank goes on sending and receiving as if nothing had
/// happened; settle() then throws on all ranks, and names the one. No rank waits for one that has
/// left.
class Agreement {
 public:
  explicit Agreement(const Communicator& ranks) : ranks_(ranks) {}

  bool failed() const { return static_cast<bool>(error_); }
  /// Runs `body` unless something before it has failed.
  void attempt(const auto& body) {
    if (error_) return;
    try {
      body();
    } catch (...) {
      error_ = std::current_exception();
    }
  }

  /// Throws on all ranks where an attempt has failed on one, with the message of the lowest such
  /// rank: std::invalid_argument if that is what it was, else std::runtime_error. Collective.
  void settle() const {
    int mine = static_cast<int>(error_ ? ranks_.rank() : ranks_.size()), first = 0;
    ranks_.check("MPI_Allreduce", MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, ranks_.get()));
    settle(static_cast<Index>(first));
  }
  /// The same where all know already which rank is the lowest that has failed, if one has.
  void settle(Index first) const {
    if (first < ranks_.size()) raise(static_cast<int>(first));
  }

  /// The same, and throws std::invalid_argument on all ranks where the call's numbers differ.
  void settle(const CallNumbers& call) const {
    std::array<Index, CallNumbers::count + 1> mine;
    mine[0] = error_ ? 1 : 0;
    std::copy(call.numbers.begin(), call.numbers.end(), mine.begin() + 1);
    std::vector<Index> all(mine.size() * static_cast<std::size_t>(ranks_.size()));
    constexpr int bytes = static_cast<int>(sizeof(mine));
    ranks_.check("MPI_Allgather", MPI_Allgather(mine.data(), bytes, MPI_BYTE, all.data(), bytes,
                                                MPI_BYTE, ranks_.get()));
    const auto of = [&](Index rank, std::size_t n) {
      return all[static_cast<std::size_t>(rank) * mine.size() + n];
    };
    for (Index rank = 0; rank < ranks_.size(); ++rank) {
      if (of(rank, 0) != 0) raise(static_cast<int>(rank));
    }
    for (Index rank = 1; rank < ranks_.size(); ++rank) {
      for (std::size_t n = 1; n < mine.size(); ++n) {
        if (of(rank, n) == of(0, n)) continue;
        fail(ranks_.function(), "rank ", rank, " and rank 0 differ in ", CallNumbers::names[n - 1],
             ": ", of(rank, n), " and ", of(0, n));
      }
    }
  }

 private:
  /// Throws what has failed on rank `first`. Collective.
  [[noreturn]] void raise(int first) const {
    std::array<Index, 2> head{};  // length of the message, whether an argument was invalid
    std::string message;
    if (first == ranks_.rank()) {
      try {
        std::rethrow_exception(error_);
      } catch (const std::invalid_argument& error) {
        message = error.what();
        head[1] = 1;
      } catch (const std::exception& error) {
        message = error.what();
      } catch (...) {
        message = "something that is no std::exception was thrown";
      }
      head[0] = static_cast<Index>(message.size());
    }
    ranks_.check("MPI_Bcast", MPI_Bcast(head.data(), sizeof(head), MPI_BYTE, first, ranks_.get()));
    message.resize(static_cast<std::size_t>(head[0]));
    ranks_.check("MPI_Bcast", MPI_Bcast(message.data(), static_cast<int>(head[0]), MPI_CHAR, first,
                                        ranks_.get()));
    message = std::string("heed::") + ranks_.function() + ": rank " + std::to_string(first) +
              " has failed: " + message;
    if (head[1]) throw std::invalid_argument(message);
    throw std::runtime_error(message);
  }

  const Communicator& ranks_;
  std::exception_ptr error_;
};

}  // namespace heed::detail
