#pragma once

#include <charconv>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>
#include <heed/tensor.hpp>

/// Handwritten digits: one image of 8 x 8 grey levels a row, 0 (paper) to 1 (ink), and its label.
struct Digits {
  heed::Matrix<float> images;  // (count, 64)
  std::vector<int> labels;     // 0 to 9
};

/// The data set beside this file, unless the second argument of the program names another.
inline std::filesystem::path digits_path(int argc, char** argv) {
  return argc > 2 ? argv[2] : std::filesystem::path(__FILE__).parent_path() / "data/digits.csv";
}

/// Reads exactly `count` lines of 64 integers from 0 to 16 and a label from 0 to 9, separated by
/// commas. Throws std::runtime_error with "file:line: what is wrong" otherwise.
inline Digits read_digits(const std::filesystem::path& path, heed::Index count = 1797) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path.string() + ": cannot be opened");
  Digits digits{heed::Matrix<float>(count, 64), {}};
  heed::Index lines = 0;
  const auto fail = [&](const std::string& what) {
    throw std::runtime_error(path.string() + ":" + std::to_string(lines) + ": " + what);
  };
  for (std::string line; std::getline(file, line);) {
    if (++lines > count) fail("more than " + std::to_string(count) + " lines");
    if (!line.empty() && line.back() == '\r') line.pop_back();
    const char *at = line.data(), *const end = at + line.size();
    for (int column = 0; column <= 64; ++column) {
      const int largest = column < 64 ? 16 : 9;
      int number = -1;
      const auto [stop, error] = std::from_chars(at, end, number);
      if (error != std::errc() || number < 0 || number > largest || *at == '-') {
        fail("number " + std::to_string(column + 1) + " is not an integer from 0 to " +
             std::to_string(largest));
      }
      if (column < 64) {
        if (stop == end || *stop != ',') {
          fail("expected a comma after number " + std::to_string(column + 1) + " of 65");
        }
        digits.images(lines - 1, column) = static_cast<float>(number) / 16;
        at = stop + 1;
      } else {
        if (stop != end) fail("text after the label");
        digits.labels.push_back(number);
      }
    }
  }
  if (file.bad()) fail("cannot be read");
  if (lines < count)
    fail("the file ends here, but should have " + std::to_string(count) + " lines");
  return digits;
}

/// (count, 10): row i has a 1 at the label of image i.
inline heed::Matrix<float> one_hot(const Digits& digits, heed::Index count) {
  heed::Matrix<float> result = heed::Matrix<float>::Zero(count, 10);
  for (heed::Index i = 0; i < count; ++i) {
    result(i, digits.labels[static_cast<std::size_t>(i)]) = 1;
  }
  return result;
}

/// Percentage of the images from `first` on whose label has the largest vote in their row.
inline double accuracy(const heed::Matrix<float>& votes, const Digits& digits, heed::Index first) {
  heed::Index right = 0, guess = 0;
  for (heed::Index i = 0; i < votes.rows(); ++i) {
    votes.row(i).maxCoeff(&guess);
    right += guess == digits.labels[static_cast<std::size_t>(first + i)];
  }
  return 100 * static_cast<double>(right) / static_cast<double>(votes.rows());
}
