#pragma once

#include <mpi.h>
#include <algorithm>
#include <thread>
#include <vector>

#include "heed/core/key_source.hpp"
#include "heed/core/view.hpp"
#include "heed/mpi/communicator.hpp"

namespace heed::detail {

/// The messages under way of one rank. MPI moves them only while it is called: engines call poll()
/// between tiles.
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

  void send(const std::byte* from, Index bytes, Index to, int tag) {
    for_each_message(bytes, [&](Index at, int count) {
      ranks_.check("MPI_Isend", MPI_Isend(from + at, count, MPI_BYTE, static_cast<int>(to), tag,
                                          ranks_.get(), &next()));
    });
    sent_ += bytes;
  }
  void receive(std::byte* to, Index bytes, Index from, int tag) {
    for_each_message(bytes, [&](Index at, int count) {
      ranks_.check("MPI_Irecv", MPI_Irecv(to + at, count, MPI_BYTE, static_cast<int>(from), tag,
                                          ranks_.get(), &next()));
    });
  }

  /// Lets MPI move what is under way. Of use on the thread that sends and receives, and nothing on
  /// others; an error is kept until wait().
  void poll() const {
    if (arrived_ || std::this_thread::get_id() != thread_) return;
    if (++turn_ % polled_turns != 0) return;
    int done = 0;
    const int code = MPI_Testall(count(), requests_.data(), &done, MPI_STATUSES_IGNORE);
    if (error_ == MPI_SUCCESS) error_ = code;
    arrived_ = done != 0 || code != MPI_SUCCESS;
  }

  /// Returns when all of it has arrived, the seconds that took.
  double wait() {
    double seconds = 0;
    if (!arrived_ && !requests_.empty()) {
      const double start = MPI_Wtime();
      const int code = MPI_Waitall(count(), requests_.data(), MPI_STATUSES_IGNORE);
      if (error_ == MPI_SUCCESS) error_ = code;
      seconds = MPI_Wtime() - start;
    }
    ranks_.check("a message", error_);
    requests_.clear();
    arrived_ = true;
    count_waiting(seconds);
    return seconds;
  }
  void count_waiting(double seconds) { waited_ += seconds; }

  Index bytes_sent() const { return sent_; }
  double seconds_waited() const { return waited_; }

 private:
  /// A tile takes tens of microseconds and asks for two runs of rows; a test takes less than one.
  static constexpr unsigned polled_turns = 4;

  int count() const { return static_cast<int>(requests_.size()); }
  MPI_Request& next() {
    arrived_ = false;
    return requests_.emplace_back(MPI_REQUEST_NULL);
  }

  const Communicator& ranks_;
  const std::thread::id thread_ = std::this_thread::get_id();
  mutable std::vector<MPI_Request> requests_;
  mutable bool arrived_ = true;
  mutable unsigned turn_ = 0;
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
