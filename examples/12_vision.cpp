// A pretrained vision transformer looks at a photograph: what its class token attends to, head by
// head, and what its patches mean to it, as colours.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <thread>
#include <vector>
#include <Eigen/Eigenvalues>
#include <unsupported/Eigen/CXX11/ThreadPool>
#include <heed/heed.hpp>

#include "dino.hpp"
#include "plot.hpp"
#include "png.hpp"

namespace {

using heed::Index;
using Pixels = heed::Tensor<std::uint8_t, 3>;  // (height, width, channels)

std::string uri(const auto& pixels) { return png::data_uri(png::encode(heed::view(pixels))); }

std::uint8_t level(double share) {
  return static_cast<std::uint8_t>(std::lround(255 * std::clamp(share, 0.0, 1.0)));
}

/// One pixel for each 4 x 4.
Pixels smaller(const Dino::Image& image) {
  constexpr Index block = 4;
  Pixels pixels(image.shape[0] / block, image.shape[1] / block, 3);
  for (Index y = 0; y < pixels.dimension(0); ++y) {
    for (Index x = 0; x < pixels.dimension(1); ++x) {
      for (Index c = 0; c < 3; ++c) {
        int sum = 0;
        for (Index n = 0; n < block * block; ++n) {
          sum += image(y * block + n / block, x * block + n % block, c);
        }
        pixels(y, x, c) = static_cast<std::uint8_t>(sum / (block * block));
      }
    }
  }
  return pixels;
}

/// White that hides what gets little of the class token's attention. A few patches draw most of
/// it, so that the 98th of a hundred counts as all.
Pixels veil(const heed::Vector<float>& attention, Index grid) {
  std::vector<float> sorted(attention.data(), attention.data() + attention.size());
  std::sort(sorted.begin(), sorted.end());
  const float most = sorted[sorted.size() * 98 / 100];
  Pixels pixels(grid, grid, 4);
  for (Index n = 0; n < grid * grid; ++n) {
    for (Index c = 0; c < 3; ++c) pixels(n / grid, n % grid, c) = 255;
    pixels(n / grid, n % grid, 3) = level(.95 - .95 * std::sqrt(double(attention(n) / most)));
  }
  return pixels;
}

/// The first three principal components of the patches as red, green and blue, each from its 2nd to
/// its 98th of a hundred.
Pixels components(const heed::Matrix<float>& patches, Index grid) {
  const Eigen::MatrixXd centred = (patches.rowwise() - patches.colwise().mean()).cast<double>();
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(centred.transpose() * centred);
  Pixels pixels(grid, grid, 3);
  for (Index c = 0; c < 3; ++c) {
    Eigen::VectorXd axis = solver.eigenvectors().col(centred.cols() - 1 - c);
    if (axis.sum() < 0) axis = -axis;  // its sign means nothing, and should not change
    const Eigen::VectorXd place = centred * axis;
    std::vector<double> sorted(place.data(), place.data() + place.size());
    std::sort(sorted.begin(), sorted.end());
    const double low = sorted[sorted.size() * 2 / 100], high = sorted[sorted.size() * 98 / 100];
    for (Index n = 0; n < grid * grid; ++n) {
      pixels(n / grid, n % grid, c) = level((place(n) - low) / (high - low));
    }
  }
  return pixels;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string pictures = argc > 1 ? argv[1] : ".";
  if (!pretrained::available({"vision.safetensors", "photographs.safetensors"})) return 0;
  const Dino model(heed::SafeTensors(pretrained::path("vision.safetensors")));
  const heed::SafeTensors photographs(pretrained::path("photographs.safetensors"));
  Eigen::ThreadPool pool(static_cast<int>(std::thread::hardware_concurrency()));

  const std::vector<std::string> names{"chelsea", "coffee", "astronaut"};
  constexpr double side = 150, step = side + 8;
  plot::Picture attention(8 + 7 * step, 54 + double(names.size()) * step);
  plot::Picture meaning(8 + 2 * double(names.size()) * step, 32 + step);
  const std::string bold = "font-weight=\"bold\"";
  attention.text({8, 20}, "What the class token attends to in the last block", 14, "start", bold);
  meaning.text({8, 20},
               "The first three principal components of the patches, as red, green and blue", 14,
               "start", bold);
  for (std::size_t n = 0; n < names.size(); ++n) {
    const auto small = photographs.view<std::uint8_t, 3>(names[n] + ".224");
    const auto large = photographs.view<std::uint8_t, 3>(names[n] + ".518");
    heed::Matrix<float> states, seen;
    for (const auto& image : {small, large}) {
      model(image, {.pool = &pool}, &seen);
      const auto start = std::chrono::steady_clock::now();
      states = model(image, {.pool = &pool});
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      std::printf("%-9s  %td x %td pixels, %4td tokens: %4.0f ms\n", names[n].c_str(),
                  image.shape[0], image.shape[1], states.rows(), 1000 * time.count());
    }
    const Index grid = Dino::kGrid, patches = grid * grid;
    const std::string photograph = uri(smaller(large));
    const double top = 54 + double(n) * step;
    for (Index head = -1; head < Dino::kHeads; ++head) {
      const plot::Point corner{8 + double(head + 1) * step, top};
      if (n == 0) {
        attention.text({corner.x + side / 2, 46},
                       head < 0 ? "photograph" : "head " + std::to_string(head + 1));
      }
      if (head < 0) {
        attention.photograph(corner, side, side, photograph, names[n]);
        continue;
      }
      attention.again({double(head + 1) * step, 0}, names[n]);
      const heed::Vector<float> weights = seen.row(head).tail(patches);
      attention.photograph(corner, side, side, uri(veil(weights, grid)));
    }
    const double left = 8 + 2 * double(n) * step;
    meaning.photograph({left, 32}, side, side, photograph);
    meaning.photograph({left + step, 32}, side, side,
                       uri(components(states.bottomRows(patches), grid)));
  }
  attention.save(pictures + "/12_attention.svg");
  meaning.save(pictures + "/12_components.svg");
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
