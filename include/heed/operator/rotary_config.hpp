#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <numbers>
#include <type_traits>
#include <variant>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"

namespace heed {

/// Which features make up pair number c of a rotation of `dim` features. Models trained with one
/// are broken by the other.
enum class RotaryLayout {
  half,        ///< (c, c + dim / 2), as in Llama and GPT-NeoX
  interleaved  ///< (2c, 2c + 1), as in RoFormer and GPT-J
};

/// YaRN: fast pairs keep their frequency, slow ones are interpolated, and those between are mixed.
struct YarnConfig {
  double factor = 0;         // how many times longer than in training, at least 1; has to be given
  Index trained_length = 0;  // has to be given
  double beta_fast = 32;  // pairs that turn more often than this over the trained length are fast
  double beta_slow = 1;   // those that turn less often are slow
  double attention_factor = 0;  // of every rotated feature; 0: 0.1 ln(factor) + 1
  bool whole_pairs = true;      // whether the ends of the mixture are rounded outwards to pairs
};

/// The frequency bands of Llama 3.1.
struct Llama3Config {
  double factor = 0;  // at least 1; has to be given
  double low_freq_factor = 1, high_freq_factor = 4;
  Index original_length = 0;  // has to be given
};

namespace detail {

inline void check_rotary_factor(const char* function, double factor) {
  if (!(factor >= 1 && std::isfinite(factor))) {
    fail(function, "the factor has to be a finite number of at least 1, not ", factor);
  }
}
inline void check_rotary_length(const char* function, const char* name, Index length) {
  if (length < 1) fail(function, name, " has to be at least 1, not ", length);
}

/// Where a rotation gets its frequencies from: pairs c = 0 .. dim / 2 - 1 turn by base^(-2c / dim)
/// a position (Su et al., "RoFormer", 2021), in a sequence of `length`.
struct RotarySpectrum {
  Index dim;
  double base, length;

  double exponent(Index c) const { return -2 * static_cast<double>(c) / static_cast<double>(dim); }
  double plain(Index c) const { return std::pow(base, exponent(c)); }
};

struct UnscaledRotary {
  double frequency(const RotarySpectrum& s, Index c) const { return s.plain(c); }
  double amplitude() const { return 1; }
};

/// Positions are divided (Chen et al., "Extending Context Window of Large Language Models via
/// Positional Interpolation", 2023).
struct LinearRotary {
  double factor;

  double frequency(const RotarySpectrum& s, Index c) const { return s.plain(c) / factor; }
  double amplitude() const { return 1; }
};

/// The base is multiplied by stretch^(dim / (dim - 2)), so that the slowest pair is slower by
/// `stretch` and the fastest stays as it is (bloc97's NTK-aware scaling, in Peng et al., "YaRN",
/// 2023, section 3.1). With a trained length L, stretch = factor * length / L - (factor - 1) beyond
/// it (dynamic scaling, ibid., as in Hugging Face's transformers), which is 1 at L.
struct NtkRotary {
  double factor;
  Index trained_length;  // 0: always stretched by the factor

  double frequency(const RotarySpectrum& s, Index c) const {
    if (c == 0) return 1;
    double stretch = factor;
    if (trained_length > 0) {
      const double ratio = s.length / static_cast<double>(trained_length);
      stretch = ratio > 1 ? factor * ratio - (factor - 1) : 1;
    }
    const double others = -2 * static_cast<double>(c) / static_cast<double>(s.dim - 2);
    return s.plain(c) * std::pow(stretch, others);
  }
  double amplitude() const { return 1; }
};

/// Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023, with the
/// ramp over the number of the pair, as in the authors' code and in the models trained with it; the
/// paper's equation has it over the number of turns.
struct YarnRotary {
  YarnConfig config;

  /// The pair, in fractions, that turns so many times over the trained length.
  double pair_of(const RotarySpectrum& s, double turns) const {
    const double wavelength = static_cast<double>(config.trained_length) / turns;
    return static_cast<double>(s.dim) * std::log(wavelength / (2 * std::numbers::pi)) /
           (2 * std::log(s.base));
  }
  double frequency(const RotarySpectrum& s, Index c) const {
    double low = pair_of(s, config.beta_fast), high = pair_of(s, config.beta_slow);
    if (config.whole_pairs) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, static_cast<double>(s.dim - 1));
    if (high <= low) high = low + .001;  // a step, where all pairs are slow or all are fast
    const double slow = std::clamp((static_cast<double>(c) - low) / (high - low), 0.0, 1.0);
    return s.plain(c) * (slow / config.factor + (1 - slow));
  }
  double amplitude() const {
    return config.attention_factor > 0 ? config.attention_factor : .1 * std::log(config.factor) + 1;
  }
};

/// "The Llama 3 Herd of Models", 2024, by the code of Llama 3.1: a pair with a wavelength beyond
/// original_length / low_freq_factor is interpolated, one below original_length / high_freq_factor
/// stays, and between them a mixture leads from one to the other.
struct Llama3Rotary {
  Llama3Config config;

  double frequency(const RotarySpectrum& s, Index c) const {
    const double plain = s.plain(c);
    const double turns =
        static_cast<double>(config.original_length) * plain / (2 * std::numbers::pi);
    const double low = config.low_freq_factor, high = config.high_freq_factor;
    const double kept = std::clamp((turns - low) / (high - low), 0.0, 1.0);
    return plain * ((1 - kept) / config.factor + kept);
  }
  double amplitude() const { return 1; }
};

/// A layout that has to be given.
class GivenRotaryLayout {
 public:
  constexpr GivenRotaryLayout(RotaryLayout layout) : layout_(layout) {}
  constexpr operator RotaryLayout() const { return layout_; }

 private:
  RotaryLayout layout_;
};

}  // namespace detail

/// How frequencies are changed for sequences longer than those of training. The makers throw
/// std::invalid_argument where a number makes no sense.
class RotaryScaling {
 public:
  RotaryScaling() = default;
  static RotaryScaling none() { return {}; }
  /// Positions are divided by the factor.
  static RotaryScaling linear(double factor) {
    detail::check_rotary_factor("RotaryScaling::linear", factor);
    return RotaryScaling(detail::LinearRotary{factor});
  }
  /// A larger base, which makes the slowest pair slower by the factor, for sequences of any length.
  static RotaryScaling ntk(double factor) {
    detail::check_rotary_factor("RotaryScaling::ntk", factor);
    return RotaryScaling(detail::NtkRotary{factor, 0});
  }
  /// A base that grows with the length of the sequence, the largest position of a call + 1, from
  /// the trained length on. Keys that an earlier call has rotated keep their earlier base.
  static RotaryScaling ntk(double factor, Index trained_length) {
    detail::check_rotary_factor("RotaryScaling::ntk", factor);
    detail::check_rotary_length("RotaryScaling::ntk", "the trained length", trained_length);
    return RotaryScaling(detail::NtkRotary{factor, trained_length});
  }
  static RotaryScaling yarn(const YarnConfig& config) {
    constexpr const char* function = "RotaryScaling::yarn";
    detail::check_rotary_factor(function, config.factor);
    detail::check_rotary_length(function, "the trained length", config.trained_length);
    if (!(config.beta_slow > 0 && config.beta_fast > config.beta_slow &&
          std::isfinite(config.beta_fast))) {
      detail::fail(function, "0 < beta_slow < beta_fast has to hold; they are ", config.beta_slow,
                   " and ", config.beta_fast);
    }
    if (!(config.attention_factor >= 0 && std::isfinite(config.attention_factor))) {
      detail::fail(function, "the attention factor has to be positive, or 0 for the paper's, not ",
                   config.attention_factor);
    }
    return RotaryScaling(detail::YarnRotary{config});
  }
  static RotaryScaling llama3(const Llama3Config& config) {
    constexpr const char* function = "RotaryScaling::llama3";
    detail::check_rotary_factor(function, config.factor);
    detail::check_rotary_length(function, "the original length", config.original_length);
    if (!(config.low_freq_factor > 0 && config.high_freq_factor > config.low_freq_factor &&
          std::isfinite(config.high_freq_factor))) {
      detail::fail(function, "0 < low_freq_factor < high_freq_factor has to hold; they are ",
                   config.low_freq_factor, " and ", config.high_freq_factor);
    }
    return RotaryScaling(detail::Llama3Rotary{config});
  }

  /// Radians that pair c turns by for each position.
  double frequency(const detail::RotarySpectrum& spectrum, Index c) const {
    return std::visit([&](const auto& law) { return law.frequency(spectrum, c); }, law_);
  }
  /// What rotated features are multiplied by.
  double amplitude() const {
    return std::visit([](const auto& law) { return law.amplitude(); }, law_);
  }

 private:
  using Law = std::variant<detail::UnscaledRotary, detail::LinearRotary, detail::NtkRotary,
                           detail::YarnRotary, detail::Llama3Rotary>;
  explicit RotaryScaling(const Law& law) : law_(law) {}

  Law law_;
};

/// A rotation of pairs of features by angles that grow with the position.
struct RotaryConfig {
  Index dim = 0;  // so many features are rotated, from the first; 0: all
  double base = 10000;
  detail::GivenRotaryLayout layout;  // without a default, for both are in use
  RotaryScaling scaling = RotaryScaling::none();
  /// 2: positions are (row, column) of an image. The first half of the pairs turns by the row, the
  /// second by the column, each with the frequencies of a rotation of dim / 2 features.
  Index axes = 1;
};

}  // namespace heed
