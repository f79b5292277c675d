#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <concepts>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <Eigen/Core>

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "heed: hidden scores are infinities and sums are split exactly: compile without -ffast-math"
#elif defined(__ASSOCIATIVE_MATH__)
#error "heed: sums are split exactly: compile without -funsafe-math-optimizations"
#endif

namespace heed::detail {

using Eigen::Index;

/// A part of a message: words, a number, or a shape as (2, 3, 4). It refers to what it is made
/// from, and has one type whatever that is, so that a program holds one function that writes
/// messages.
class Part {
 public:
  Part(const char* words) : kind_(Kind::words), words_(words) {}
  Part(const std::string& words) : Part(words.c_str()) {}
  Part(Index n) : kind_(Kind::integer), integer_(n) {}
  Part(float x) : kind_(Kind::single), real_(static_cast<double>(x)) {}
  Part(double x) : kind_(Kind::real), real_(x) {}
  Part(long double x) : Part(static_cast<double>(x)) {}
  template <std::integral Integer>
  Part(Integer n) : Part(static_cast<Index>(n)) {}
  template <std::size_t Rank>
  Part(const std::array<Index, Rank>& shape) : Part(shape.data(), Rank) {}
  Part(const Index* shape, std::size_t rank) : kind_(Kind::shape), shape_{shape, rank} {}

  /// Writes it to `to`, unless that is null, and returns its length. Of a number these are the
  /// fewest digits that read back as the same number.
  std::size_t write(char* to) const {
    if (kind_ == Kind::words) return copy(words_, std::strlen(words_), to);
    std::size_t length = 0;
    const auto add = [&](const char* from, std::size_t count) {
      length += copy(from, count, to ? to + length : to);
    };
    char digits[64];  // more than any number takes in its shortest form
    const auto add_integer = [&](Index n) {
      const int count = std::snprintf(digits, sizeof digits, "%lld", static_cast<long long>(n));
      add(digits, static_cast<std::size_t>(count));
    };
    if (kind_ == Kind::integer) {
      add_integer(integer_);
    } else if (kind_ == Kind::shape) {
      add("(", 1);
      for (std::size_t axis = 0; axis < shape_.rank; ++axis) {
        if (axis > 0) add(", ", 2);
        add_integer(shape_.extents[axis]);
      }
      add(")", 1);
    } else {
      char* const end = digits + sizeof digits;
      const auto written = kind_ == Kind::single
                               ? std::to_chars(digits, end, static_cast<float>(real_))
                               : std::to_chars(digits, end, real_);
      add(digits, static_cast<std::size_t>(written.ptr - digits));
    }
    return length;
  }

 private:
  enum class Kind { words, integer, single, real, shape };
  struct Shape {
    const Index* extents;
    std::size_t rank;
  };

  static std::size_t copy(const char* from, std::size_t count, char* to) {
    if (to) std::memcpy(to, from, count);
    return count;
  }

  Kind kind_;
  union {
    const char* words_;
    Index integer_;
    double real_;
    Shape shape_;
  };
};

/// What a part reads as.
inline std::string text(const Part& part) {
  std::string result(part.write(nullptr), ' ');
  part.write(result.data());
  return result;
}

/// Throws an Error that says the parts, or, where the program is compiled without exceptions,
/// prints them and aborts.
template <class Error>
[[noreturn]] EIGEN_DONT_INLINE void fail_with(const Part* parts, std::size_t count) {
  std::size_t length = 0;
  for (std::size_t n = 0; n < count; ++n) length += parts[n].write(nullptr);
  const std::unique_ptr<char[]> message(new char[length + 1]);
  char* end = message.get();
  for (std::size_t n = 0; n < count; ++n) end += parts[n].write(end);
  *end = '\0';
#if defined(__cpp_exceptions)
  throw Error(message.get());
#else
  std::fprintf(stderr, "%s\n", message.get());
  std::abort();
#endif
}

/// Throws std::invalid_argument, or another Error, with "heed::<function>: " before the parts.
template <class Error = std::invalid_argument, class... Parts>
[[noreturn]] void fail(const char* function, const Parts&... parts) {
  const Part all[] = {"heed::", function, ": ", parts...};
  fail_with<Error>(all, sizeof...(Parts) + 3);
}

/// check_extents of a shape of any rank.
EIGEN_DONT_INLINE inline void check_extents(const char* function, const char* name,
                                            const Index* shape, std::size_t rank) {
  Index size = 1;
  for (std::size_t axis = 0; axis < rank; ++axis) {
    if (shape[axis] < 0) {
      fail(function, name, " has a negative extent of ", shape[axis], " in axis ", axis,
           "; its shape is ", Part(shape, rank));
    }
    if (__builtin_mul_overflow(size, std::max<Index>(shape[axis], 1), &size) ||
        size > std::numeric_limits<Index>::max() / 64) {
      fail(function, name, " of shape ", Part(shape, rank), " has too many elements");
    }
  }
}

/// Refuses a shape with a negative extent, or of more numbers than an Index counts in bytes, with
/// room for a few times as many: what is computed from such a shape would overflow. An axis of 0
/// does not excuse the others, for they are multiplied in any order.
template <std::size_t Rank>
void check_extents(const char* function, const char* name, const std::array<Index, Rank>& shape) {
  // Extents of so few bits multiply to no more than that, and are not negative: a small call does
  // not wait for a chain of products.
  constexpr int bits = (std::numeric_limits<Index>::digits - 6) / static_cast<int>(Rank);
  Index all = 0;
  for (const Index extent : shape) all |= extent;
  if (all >> bits != 0) check_extents(function, name, shape.data(), Rank);
}

/// A gradient has the shape of what it is a gradient of, `what`.
template <std::size_t Rank>
void check_gradient_shape(const char* function, const char* what,
                          const std::array<Index, Rank>& shape,
                          const std::array<Index, Rank>& gradient) {
  for (std::size_t axis = 0; axis < Rank; ++axis) {
    if (shape[axis] != gradient[axis]) {
      fail(function, "the gradient differs from ", what, " in axis ", axis, ": ", gradient[axis],
           " and ", shape[axis], "; the gradient is ", gradient, ", ", what, " ", shape);
    }
  }
}

}  // namespace heed::detail
