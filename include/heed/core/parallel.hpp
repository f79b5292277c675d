#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <Eigen/Core>
#include <unsupported/Eigen/CXX11/ThreadPool>

namespace heed::detail {

using Eigen::Index;

/// Calls body(first, last) for runs that cover 0 .. items-1, on as many threads as the pool has,
/// the caller being one of them. All take runs from a counter, and the caller waits only for runs
/// that were taken, so that a call from within the pool cannot lock up. The first exception of a
/// body reaches the caller.
template <class Body>
void parallel_for(Eigen::ThreadPoolInterface* pool, Index items, const Body& body) {
  if (items <= 0) return;
  const Index threads = pool ? std::min<Index>(pool->NumThreads(), items) : 1;
  if (threads <= 1) {
    body(Index(0), items);
    return;
  }
  // Several runs a thread, so that one that starts late or runs slowly holds up little.
  const Index run = std::max<Index>(1, items / (threads * 8));
  struct State {
    std::atomic<Index> next{0};
    std::mutex mutex;
    std::condition_variable done;
    Index finished = 0;
    std::exception_ptr error;
  };
  const auto state = std::make_shared<State>();
  const auto work = [state, items, run, &body] {
    for (Index first; (first = state->next.fetch_add(run)) < items;) {
      const Index last = std::min(first + run, items);
      std::exception_ptr error;
      try {
        body(first, last);
      } catch (...) {
        error = std::current_exception();
      }
      const std::lock_guard lock(state->mutex);
      if (error && !state->error) state->error = error;
      state->finished += last - first;
      if (state->finished == items) state->done.notify_all();
    }
  };
  for (Index t = 1; t < threads; ++t) pool->Schedule(work);
  work();
  std::unique_lock lock(state->mutex);
  state->done.wait(lock, [&] { return state->finished == items; });
  if (state->error) std::rethrow_exception(state->error);
}

}  // namespace heed::detail
