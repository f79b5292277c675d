#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <Eigen/Core>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "heed/detail/check.hpp"

namespace heed::detail {

/// A block of memory on loan from the thread for as long as the object lives. The thread keeps the
/// block for the next loan, so that repeated calls of one shape allocate once; it keeps another for
/// loans within a loan (the caller's own share of a parallel loop), and those within these (a
/// user's lambda that calls the library) get memory of their own.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes) : block_(std::exchange(kept(), Block{})) {
    if (block_.bytes < bytes) block_ = Block(bytes);
    next_ = block_.data.get();
    ++loans();
  }
  ~Scratch() {
    --loans();
    if (block_.bytes > kept().bytes) kept() = std::move(block_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  static constexpr std::size_t alignment = 64;  // a cache line, and the widest vector
  template <class T>
  static constexpr std::size_t bytes(Index count) {
    return (static_cast<std::size_t>(count) * sizeof(T) + alignment - 1) / alignment * alignment;
  }

  /// Room for count numbers, uninitialised; the sum of bytes<T>(count) must not pass the loan.
  template <class T>
  T* take(Index count) {
    T* result = reinterpret_cast<T*>(next_);
    next_ += bytes<T>(count);
    return result;
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t(alignment)); }
  };
  struct Block {
    std::unique_ptr<std::byte, Free> data;
    std::size_t bytes = 0;

    Block() = default;
    explicit Block(std::size_t n)
        : data(static_cast<std::byte*>(::operator new(n, std::align_val_t(alignment)))), bytes(n) {}
    Block(Block&& other) noexcept
        : data(std::move(other.data)), bytes(std::exchange(other.bytes, 0)) {}
    Block& operator=(Block&& other) noexcept {
      data = std::move(other.data);
      bytes = std::exchange(other.bytes, 0);
      return *this;
    }
  };
  static Block& kept() {
    static thread_local Block blocks[2];
    return blocks[loans() == 0 ? 0 : 1];
  }
  static int& loans() {
    static thread_local int count = 0;
    return count;
  }

  Block block_;
  std::byte* next_ = nullptr;
};

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
