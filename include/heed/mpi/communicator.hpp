#pragma once

#include <mpi.h>
#include <algorithm>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"

#if !defined(__cpp_exceptions)
#error \
    "heed: ranks agree on a refusal by catching it: compile what includes mpi.hpp with exceptions"
#endif

namespace heed::detail {

/// An error of MPI's as std::runtime_error, with the function that the user called and what MPI
/// says about it.
inline void check_mpi(const char* function, const char* call, int code) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) length = 0;
  throw std::runtime_error(std::string("heed::") + function + ": " + call +
                           " failed: " + std::string(text, static_cast<std::size_t>(length)));
}

/// The ranks of a call. Messages travel on a duplicate of the user's communicator, so that they
/// meet none of the user's own, and errors there are returned instead of ending the program. The
/// user's communicator keeps the duplicate for the next call and frees it at its own end.
class Communicator {
 public:
  /// std::invalid_argument where MPI is not running and for a communicator that connects no ranks
  /// with one another. The first call for a communicator is one of all its ranks.
  Communicator(const char* function, MPI_Comm users) : function_(function) {
    int running = 0, over = 0;
    MPI_Initialized(&running);
    MPI_Finalized(&over);
    if (!running || over)
      fail(function, "MPI is not running; MPI_Init comes before the first call");
    if (users == MPI_COMM_NULL) fail(function, "the communicator is MPI_COMM_NULL");
    int between_groups = 0;
    check("MPI_Comm_test_inter", MPI_Comm_test_inter(users, &between_groups));
    if (between_groups) {
      fail(function, "the communicator connects two groups; ranks of one group are needed");
    }
    void* kept = nullptr;
    int found = 0;
    check("MPI_Comm_get_attr", MPI_Comm_get_attr(users, key(), &kept, &found));
    if (!found) {
      auto own = std::make_unique<MPI_Comm>(MPI_COMM_NULL);
      check("MPI_Comm_dup", MPI_Comm_dup(users, own.get()));
      check("MPI_Comm_set_errhandler", MPI_Comm_set_errhandler(*own, MPI_ERRORS_RETURN));
      check("MPI_Comm_set_attr", MPI_Comm_set_attr(users, key(), own.get()));
      kept = own.release();
    }
    own_ = *static_cast<MPI_Comm*>(kept);
    int rank = 0, size = 0;
    check("MPI_Comm_rank", MPI_Comm_rank(own_, &rank));
    check("MPI_Comm_size", MPI_Comm_size(own_, &size));
    rank_ = rank;
    size_ = size;
  }

  MPI_Comm get() const { return own_; }
  const char* function() const { return function_; }
  Index rank() const { return rank_; }
  Index size() const { return size_; }

  void check(const char* call, int code) const { check_mpi(function_, call, code); }

 private:
  static int free_duplicate(MPI_Comm, int, void* kept, void*) {
    const std::unique_ptr<MPI_Comm> own(static_cast<MPI_Comm*>(kept));
    return MPI_Comm_free(own.get());
  }
  static int key() {
    static const int result = [] {
      int number = MPI_KEYVAL_INVALID;
      MPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, free_duplicate, &number, nullptr);
      return number;
    }();
    return result;
  }

  const char* function_;
  MPI_Comm own_ = MPI_COMM_NULL;
  Index rank_ = 0, size_ = 1;
};

/// The longest message: MPI counts bytes by int, and pieces of so many are few.
inline constexpr Index longest_message = Index(1) << 30;

/// body(byte, count) for the messages that `bytes` bytes travel in.
inline void for_each_message(Index bytes, const auto& body) {
  for (Index at = 0; at < bytes; at += longest_message) {
    body(at, static_cast<int>(std::min(longest_message, bytes - at)));
  }
}

}  // namespace heed::detail
