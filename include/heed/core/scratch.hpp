#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <memory>
#include <new>
#include <utility>
#include <Eigen/Core>

namespace heed::detail {

using Eigen::Index;

/// Where the parts of a block of memory lie. Laid out over nothing it adds up how large the block
/// has to be, so that the parts are listed once.
class Layout {
 public:
  static constexpr std::size_t alignment = 64;  // a cache line, and the widest vector

  explicit Layout(std::byte* memory = nullptr) : memory_(memory) {}
  /// Room for count numbers, uninitialised.
  template <class T>
  T* take(Index count) {
    const std::size_t at = bytes_;
    bytes_ += rounded<T>(count);
    return memory_ ? reinterpret_cast<T*>(memory_ + at) : nullptr;
  }
  std::size_t bytes() const { return bytes_; }

  template <class T>
  static constexpr std::size_t rounded(Index count) {
    return (static_cast<std::size_t>(count) * sizeof(T) + alignment - 1) / alignment * alignment;
  }

 private:
  std::byte* memory_;
  std::size_t bytes_ = 0;
};

/// A block of memory on loan from the thread for as long as the object lives. The thread keeps the
/// block for the next loan, so that repeated calls of one shape allocate once. Loans within loans
/// (a block of layers, a layer, its attention, the caller's own share of a parallel loop) have a
/// block for each depth, and the deepest (a user's lambda that calls the library) memory of their
/// own.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes) : block_(std::exchange(kept(), Block{})) {
    // Larger by half, where one grows: what grows a little with each call, such as a cache, then
    // allocates rarely.
    if (block_.bytes < bytes) block_ = Block(std::max(bytes, block_.bytes + block_.bytes / 2));
    next_ = block_.data.get();
    ++loans();
  }
  /// Memory for what `lay` takes of a Layout; `lay` is called twice, the second time with memory.
  template <std::invocable<Layout&> Lay>
  explicit Scratch(const Lay& lay) : Scratch(bytes_of(lay)) {
    Layout layout(block_.data.get());
    lay(layout);
  }
  ~Scratch() {
    --loans();
    if (block_.bytes > kept().bytes) kept() = std::move(block_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  static constexpr std::size_t bytes(Index count) {
    return Layout::rounded<T>(count);
  }

  /// Room for count numbers, uninitialised; the sum of bytes<T>(count) must not pass the loan.
  template <class T>
  T* take(Index count) {
    T* result = reinterpret_cast<T*>(next_);
    next_ += bytes<T>(count);
    eigen_assert(next_ <= block_.data.get() + block_.bytes);
    return result;
  }

 private:
  static constexpr std::size_t alignment = Layout::alignment;

  template <class Lay>
  static std::size_t bytes_of(const Lay& lay) {
    Layout layout;
    lay(layout);
    return layout.bytes();
  }

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
    constexpr int depths = 6;
    static thread_local Block blocks[depths];
    return blocks[std::min(loans(), depths - 1)];
  }
  static int& loans() {
    static thread_local int count = 0;
    return count;
  }

  Block block_;
  std::byte* next_ = nullptr;
};

}  // namespace heed::detail
