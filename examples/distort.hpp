#pragma once

#include <array>
#include <cmath>
#include <heed/tensor.hpp>

#include "random.hpp"

/// How far distort goes; each image draws its own numbers, evenly within plus and minus these.
struct Distortion {
  double rotation = 0.2;  // radians
  double stretch = 0.15;  // logarithm of the scale, along x and along y
  double shear = 0.3;     // pixels sideways for each pixel down
  double shift = 1;       // pixels, along x and along y
  double bend = 0.4;      // pixels: standard deviation of the bends at 3 x 3 points, interpolated
};

/// An image of 8 x 8 pixels as if written by another hand: turned, stretched, sheared, shifted and
/// bent (Simard, Steinkraus and Platt, 2003), with bilinear interpolation and paper all around.
template <class Image>
heed::Vector<float> distort(const Image& image, const Distortion& by, Random& random) {
  using heed::Index;
  const auto within = [&](double bound) { return bound * (2 * random.uniform() - 1); };
  const auto pixel = [&](Index row, Index column) {
    const bool inside = row >= 0 && row < 8 && column >= 0 && column < 8;
    return inside ? image(8 * row + column) : 0.f;
  };
  const double angle = within(by.rotation), cosine = std::cos(angle), sine = std::sin(angle);
  const double stretch_y = std::exp(within(by.stretch)), stretch_x = std::exp(within(by.stretch));
  const double shear = within(by.shear), shift_y = within(by.shift), shift_x = within(by.shift);
  std::array<double, 18> bends;
  for (double& bend : bends) bend = by.bend * random.normal();

  heed::Vector<float> result(64);
  for (Index row = 0; row < 8; ++row) {
    for (Index column = 0; column < 8; ++column) {
      // From the middle of the image; the bends are hat functions around -3.5, 0 and 3.5.
      const double y = static_cast<double>(row) - 3.5, x = static_cast<double>(column) - 3.5;
      double from_y = stretch_y * (cosine * y - sine * x) + shift_y + 3.5;
      double from_x = stretch_x * (sine * y + cosine * x) + shear * y + shift_x + 3.5;
      for (int point = 0; point < 9; ++point) {
        const double hat_y = 1 - std::abs(y - 3.5 * (point / 3 - 1)) / 3.5;
        const double hat_x = 1 - std::abs(x - 3.5 * (point % 3 - 1)) / 3.5;
        if (hat_y <= 0 || hat_x <= 0) continue;
        from_y += hat_y * hat_x * bends[static_cast<std::size_t>(point)];
        from_x += hat_y * hat_x * bends[static_cast<std::size_t>(point + 9)];
      }
      const auto top = static_cast<Index>(std::floor(from_y));
      const auto left = static_cast<Index>(std::floor(from_x));
      const auto down = static_cast<float>(from_y - std::floor(from_y));
      const auto right = static_cast<float>(from_x - std::floor(from_x));
      result(8 * row + column) =
          (1 - down) * ((1 - right) * pixel(top, left) + right * pixel(top, left + 1)) +
          down * ((1 - right) * pixel(top + 1, left) + right * pixel(top + 1, left + 1));
    }
  }
  return result;
}
