#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "heed/core/view.hpp"

namespace heed::fuzz {

/// What a round found. Thrown, so that a round ends there and whoever drives it says how to repeat
/// it.
struct Finding : std::logic_error {
  using std::logic_error::logic_error;
};

/// What the round is about, for messages.
inline std::string& about() {
  static std::string text;
  return text;
}

template <class... Parts>
[[noreturn]] void found(const Parts&... parts) {
  std::ostringstream text;
  text.precision(9);
  (text << ... << parts) << "; " << about();
  throw Finding(text.str());
}

/// Decisions out of a string of bytes: each takes one or two of them, so that a fuzzer which
/// changes a byte changes a decision. Behind their end, and for numbers in bulk, a generator goes
/// on that all of the bytes have seeded.
class Draw {
 public:
  Draw(const std::uint8_t* data, std::size_t size) : next_(data), end_(data + size) {
    std::uint64_t hash = 0xcbf29ce484222325;
    for (std::size_t n = 0; n < size; ++n) hash = (hash ^ data[n]) * 0x100000001b3;
    engine_.seed(hash);
  }

  /// From low to high, both of them possible.
  Index integer(Index low, Index high) {
    const auto range = static_cast<std::uint64_t>(high - low) + 1;
    return low + static_cast<Index>((range <= 256 ? byte() : byte() << 8 | byte()) % range);
  }
  bool chance(int percent) { return integer(0, 99) < percent; }
  template <class T>
  T one_of(std::initializer_list<T> choices) {
    return choices.begin()[integer(0, static_cast<Index>(choices.size()) - 1)];
  }
  /// A length: none, one, about a vector, about a panel of vectors, about a tile, or any up to
  /// most.
  Index length(Index most) {
    const Index chosen =
        chance(50)
            ? integer(0, most)
            : one_of<Index>({0,  1,  1,  2,  3,  4,  5,  7,  8,  9,   15,  16,  17,  24,  31,
                             32, 33, 47, 48, 49, 64, 65, 96, 97, 128, 191, 192, 193, 256, 300});
    return std::min(chosen, most);
  }
  /// Uniform in [-1, 1), with few enough digits for every number type of 8 bits or more.
  double number() {
    return static_cast<double>(static_cast<std::int64_t>(engine_() % 512) - 256) / 256;
  }
  /// Uniform in [-1, 1).
  double fine_number() { return static_cast<double>(engine_() >> 11) * 0x1p-52 - 1; }
  std::uint64_t word() { return engine_(); }
  std::size_t left() const { return static_cast<std::size_t>(end_ - next_); }

 private:
  std::uint64_t byte() { return next_ < end_ ? *next_++ : engine_() & 255; }

  const std::uint8_t *next_, *end_;
  std::mt19937_64 engine_;
};

/// One round of each kind.
void attend_plain(Draw& draw);     // products, with masks of one range
void attend_modified(Draw& draw);  // products with modifiers
void attend_near(Draw& draw);      // scores of distances
void attend_other(Draw& draw);     // additive, bilinear, pairwise
void attend_numbers(Draw& draw);   // double, half, bfloat16
void attend_extreme(Draw& draw);   // what is visible and huge, tiny, infinite or alike
void attend_ragged(Draw& draw);
void use_caches(Draw& draw);
void run_layers(Draw& draw);
void rotate(Draw& draw);
void compose_layers(Draw& draw);  // layers by their definition, out of naive ones
void read_files(Draw& draw);
void save_files(Draw& draw);

struct Kind {
  const char* name;
  void (*round)(Draw&);
};
inline constexpr Kind kinds[] = {
    {"attend_plain", attend_plain},
    {"attend_modified", attend_modified},
    {"attend_near", attend_near},
    {"attend_other", attend_other},
    {"attend_numbers", attend_numbers},
    {"attend_extreme", attend_extreme},
    {"attend_ragged", attend_ragged},
    {"use_caches", use_caches},
    {"run_layers", run_layers},
    {"read_files", read_files},
    {"rotate", rotate},
    {"compose_layers", compose_layers},
    {"save_files", save_files},
};

}  // namespace heed::fuzz
