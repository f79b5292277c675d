#pragma once

#include <mpi.h>
#include <cstddef>
#include <thread>
#include <vector>

#include "heed/core/key_source.hpp"
#include "heed/core/view.hpp"
#include "heed/mpi/communicator.hpp"

namespace heed::detail {

/// The messages under way of one rank. MPI moves them only while it is called: engines call poll()
/// between tiles. The first error is kept until check(), and what other ranks wait for goes on.
class Traffic {
 public:
  explicit Traffic(const Communicator& ranks) : ranks_(ranks) {}
  Traffic(const Traffic&) = delete;
  Traffic& operator=(const Traffic&) = delete;
  /// What is under way refers to memory that is about to go.
  ~Traffic() {
    for (MPI_Request& request : requests_) {
      if (request == MPI_REQUEST_NULL) continue;
      MPI_Cancel(&request);
      MPI_Request_free(&request);
    }
  }

  /// In place of a message that MPI does not take, an empty one ends the other rank's waiting.
  void send(const std::byte* from, Index bytes, Index to, int tag) {
    for_each_message(bytes, [&](Index at, int count) {
      const auto post = [&](int length) {
        return begin("MPI_Isend", [&](MPI_Request* request) {
          return MPI_Isend(from + at, length, MPI_BYTE, static_cast<int>(to), tag, ranks_.get(),
                           request);
        });
      };
      if (!post(count)) post(0);
    });
    sent_ += bytes;
  }
  /// Asks again where MPI does not take it, so that the other rank may send.
  void receive(std::byte* to, Index bytes, Index from, int tag) {
    for_each_message(bytes, [&](Index at, int count) {
      const auto post = [&] {
        return begin("MPI_Irecv", [&](MPI_Request* request) {
          return MPI_Irecv(to + at, count, MPI_BYTE, static_cast<int>(from), tag, ranks_.get(),
                           request);
        });
      };
      if (!post()) post();
    });
  }

  /// Lets MPI move what is under way. Of use on the thread that sends and receives, and nothing on
  /// others.
  void poll() const {
    if (std::this_thread::get_id() != thread_ || tested_ == requests_.size()) return;
    if (++turn_ % polled_turns != 0) return;
    int done = 0;
    const int code = MPI_Test(&requests_[tested_], &done, MPI_STATUS_IGNORE);
    if (!keep("a message", code) || done != 0) ++tested_;
  }

  /// Returns when all of it has arrived or failed, the seconds that took.
  double wait() {
    const double start = MPI_Wtime();
    for (MPI_Request& request : requests_) {
      if (request == MPI_REQUEST_NULL) continue;
      keep("a message", MPI_Wait(&request, MPI_STATUS_IGNORE));
    }
    const double seconds = requests_.empty() ? 0 : MPI_Wtime() - start;
    requests_.clear();
    tested_ = 0;
    count_waiting(seconds);
    return seconds;
  }
  void count_waiting(double seconds) { waited_ += seconds; }

  /// Throws the first error.
  void check() const { ranks_.check(failed_, error_); }

  Index bytes_sent() const { return sent_; }
  double seconds_waited() const { return waited_; }

 private:
  /// A tile takes tens of microseconds and asks for two runs of rows; a test takes less than one.
  static constexpr unsigned polled_turns = 4;

  bool begin(const char* call, const auto& post) {
    MPI_Request request = MPI_REQUEST_NULL;
    const bool begun = keep(call, post(&request));
    if (begun) requests_.push_back(request);
    return begun;
  }
  bool keep(const char* call, int code) const {
    if (error_ == MPI_SUCCESS && code != MPI_SUCCESS) {
      failed_ = call;
      error_ = code;
    }
    return code == MPI_SUCCESS;
  }

  const Communicator& ranks_;
  const std::thread::id thread_ = std::this_thread::get_id();
  mutable std::vector<MPI_Request> requests_;
  mutable std::size_t tested_ = 0;  // requests from the first on that have ended
  mutable unsigned turn_ = 0;
  mutable const char* failed_ = "";
  mutable int error_ = MPI_SUCCESS;
  Index sent_ = 0;
  double waited_ = 0;
};

/// Rows of a chunk of keys or values that has arrived: whoever asks for a run of them lets the next
/// chunks travel on.
template <class Element_>
struct ArrivedRows {
  using Element = Element_;
  TensorRows<Element> rows;
  const Traffic* traffic;

  Index width() const { return rows.width(); }
  Run<Element> run(Index batch, Index head, Index first, Index most) const {
    traffic->poll();
    return rows.run(batch, head, first, most);
  }
};

}  // namespace heed::detail
