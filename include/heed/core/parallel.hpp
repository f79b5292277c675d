#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <Eigen/Core>
#include <unsupported/Eigen/CXX11/ThreadPool>

namespace heed::detail {

using Eigen::Index;

/// A wait of some 200 microseconds without sleep: twice what it takes to wake a thread that sleeps,
/// and longer than what a module does on one thread between two jobs of its pool.
class Patience {
 public:
  /// Lets a little time pass; false once there is none left.
  bool spin() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
    // The clock takes longer than the pause.
    if (++spins_ % 16 != 0) return true;
    // Who is waited for may have been woken on this very processor.
    std::this_thread::yield();
    return std::chrono::steady_clock::now() < end_;
  }

 private:
  unsigned spins_ = 0;
  std::chrono::steady_clock::time_point end_ =
      std::chrono::steady_clock::now() + std::chrono::microseconds(200);
};

/// A body of a loop over items first .. last-1, whatever its type.
struct LoopBody {
  void (*call)(const void* of, Index first, Index last);
  const void* of;
};

/// Runs of 0 .. items-1, which threads take from a counter until none is left. It lives on the
/// caller's stack: whoever may still touch it has been counted, and is waited for.
class Job {
 public:
  Job(LoopBody body, Index items, Index run) : body_(body), items_(items), run_(run) {}

  void work() {
    for (Index first; (first = next_.fetch_add(run_)) < items_;) {
      const Index last = std::min(first + run_, items_);
#if defined(__cpp_exceptions)
      try {
        body_.call(body_.of, first, last);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
#else
      body_.call(body_.of, first, last);
#endif
    }
  }

  /// What another thread does, once.
  void help() {
    work();
    const std::lock_guard lock(mutex_);
    ++left_;
    leaving_.notify_one();
  }

  /// Until so many have helped.
  void wait(Index helpers) {
    if (helpers == 0) return;
    for (Patience patience; left_ < helpers && patience.spin();) {
    }
    std::unique_lock lock(mutex_);
    leaving_.wait(lock, [&] { return left_ >= helpers; });
  }

  /// Throws the first exception of a body, once all have left.
  void check() const {
#if defined(__cpp_exceptions)
    if (error_) std::rethrow_exception(error_);
#endif
  }

 private:
  const LoopBody body_;
  const Index items_, run_;
  alignas(64) std::atomic<Index> next_{0};
  alignas(64) std::atomic<Index> left_{0};
  std::mutex mutex_;
  std::condition_variable leaving_;
#if defined(__cpp_exceptions)
  std::exception_ptr error_;
#endif
};

/// Where a thread that has helped stays awake for a while, ready for the next job of its pool:
/// waking one that sleeps takes 30 to 100 microseconds, as long as a small layer on one thread.
class Seat {
 public:
  /// As many as there are processors beside the caller's.
  static Index count() {
    static const Index beside =
        std::clamp<Index>(static_cast<Index>(std::thread::hardware_concurrency()) - 1, 0, 63);
    return beside;
  }
  static Seat& at(Index n) { return all_[static_cast<std::size_t>(n)]; }

  /// Called by a thread of the pool: helps with its jobs until none has come for a while.
  static void linger(const void* pool) {
    for (Index n = 0; n < count(); ++n) {
      const void* nobody = nullptr;
      if (at(n).holds_.compare_exchange_strong(nobody, pool)) return at(n).stay(pool);
    }
  }

  /// Offers the job to who waits here for one of this pool.
  bool offer(const void* pool, Job& job) {
    return holds_ == pool && holds_.compare_exchange_strong(pool, &job);
  }
  /// Takes the offer back; false where it has been accepted.
  bool withdraw(const void* pool, Job& job) {
    const void* offered = &job;
    return holds_.compare_exchange_strong(offered, pool);
  }

 private:
  void stay(const void* pool) {
    for (Patience patience;;) {
      const void* seen = holds_;
      if (seen == pool) {
        if (!patience.spin() && holds_.compare_exchange_strong(seen, nullptr)) return;
      } else if (holds_.compare_exchange_strong(seen, this)) {
        static_cast<Job*>(const_cast<void*>(seen))->help();
        holds_ = pool;
        patience = {};
      }
    }
  }

  /// Nothing: the seat is free. A pool: one of its threads waits. A job: it is offered to the
  /// thread. The seat itself: the thread is at work.
  alignas(64) std::atomic<const void*> holds_{nullptr};

  static std::array<Seat, 63> all_;
};
inline std::array<Seat, 63> Seat::all_{};

/// A job that tasks of a pool may begin late, or never.
class Invitation {
 public:
  explicit Invitation(Job& job) : job_(job) {}

  /// How many have accepted; nobody does from now on.
  Index close() { return accepted_.exchange(-1); }

  /// What a thread of the pool does with it. One that comes too late stays for the next job all the
  /// same, as jobs that are shorter than a thread takes to wake would be without help for ever; but
  /// not once for every invitation that has piled up meanwhile.
  void take_up(const void* pool) {
    static thread_local std::chrono::steady_clock::time_point left;
    if (!accept() && sent_ < left) return;
    Seat::linger(pool);
    left = std::chrono::steady_clock::now();
  }

 private:
  bool accept() {
    for (Index before = accepted_; before >= 0;) {
      if (accepted_.compare_exchange_weak(before, before + 1)) {
        job_.help();
        return true;
      }
    }
    return false;
  }

  Job& job_;
  const std::chrono::steady_clock::time_point sent_ = std::chrono::steady_clock::now();
  std::atomic<Index> accepted_{0};
};

/// Threads of a pool that help the caller with a job. At its end nobody has, or will have, to do
/// with the job; it waits for those who have begun only, so that a call from within the pool cannot
/// lock up.
class Helpers {
 public:
  /// Offers the job to up to `count` threads that are awake.
  Helpers(Eigen::ThreadPoolInterface* pool, Job& job, Index count)
      : pool_(pool), job_(job), missing_(count) {
    for (Index n = 0; n < Seat::count() && missing_ > 0; ++n) {
      if (!Seat::at(n).offer(pool, job)) continue;
      seats_[offers_++] = n;
      --missing_;
    }
  }
  /// Wakes as many as are missing.
  void invite() {
    if (missing_ == 0) return;
    invitation_ = std::make_shared<Invitation>(job_);
    for (; missing_ > 0; --missing_) {
      pool_->Schedule([invitation = invitation_, pool = pool_] { invitation->take_up(pool); });
    }
  }
  ~Helpers() {
    Index begun = invitation_ ? invitation_->close() : 0;
    for (std::size_t n = 0; n < offers_; ++n) {
      if (!Seat::at(seats_[n]).withdraw(pool_, job_)) ++begun;
    }
    job_.wait(begun);
  }
  Helpers(const Helpers&) = delete;
  Helpers& operator=(const Helpers&) = delete;

 private:
  Eigen::ThreadPoolInterface* pool_;
  Job& job_;
  Index missing_;
  std::array<Index, 63> seats_;
  std::size_t offers_ = 0;
  std::shared_ptr<Invitation> invitation_;
};

/// A product of fewer multiply-adds, some 3 microseconds of one thread, is not shared: that brings
/// little where the others are awake, and costs ten times as much where they are not. (Tests set it
/// to 0, so that small shapes are shared as well.)
inline Index least_shared = Index(1) << 17;
inline Eigen::ThreadPoolInterface* pool_for(double multiply_adds,
                                            Eigen::ThreadPoolInterface* pool) {
  return multiply_adds < static_cast<double>(least_shared) ? nullptr : pool;
}

/// parallel_for, once for all bodies.
EIGEN_DONT_INLINE inline void run_on_pool(Eigen::ThreadPoolInterface* pool, Index items,
                                          LoopBody body) {
  const Index threads = pool ? std::min<Index>(pool->NumThreads(), items) : 1;
  if (threads <= 1) {
    if (items > 0) body.call(body.of, 0, items);
    return;
  }
  // Several runs a thread, so that one that starts late or runs slowly holds up little.
  Job job(body, items, std::max<Index>(1, items / (threads * 8)));
  {
    Helpers helpers(pool, job, threads - 1);
    helpers.invite();
    job.work();
  }
  job.check();
}

/// Calls body(first, last) for runs that cover 0 .. items-1, on as many threads as the pool has,
/// the caller being one of them. The first exception of a body reaches the caller.
template <class Body>
void parallel_for(Eigen::ThreadPoolInterface* pool, Index items, const Body& body) {
  run_on_pool(pool, items,
              {[](const void* of, Index first, Index last) {
                 (*static_cast<const Body*>(of))(first, last);
               },
               &body});
}

}  // namespace heed::detail
