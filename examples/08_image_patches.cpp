// Image patches that attend to each other: a digit is cut into 64 overlapping patches of 3 x 3, one
// around each pixel, and the weights of one patch are laid over the image.

#include <array>
#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <heed/heed.hpp>

#include "digits.hpp"
#include "plot.hpp"

namespace {

using heed::Index;
using Matrix = heed::Matrix<float>;

/// (64, 9): the neighbourhood of each pixel, white beyond the edges.
Matrix cut(const Matrix& image) {
  Matrix padded = Matrix::Zero(10, 10), patches(64, 9);
  padded.block(1, 1, 8, 8) = image;
  for (Index p = 0; p < 64; ++p) {
    patches.row(p) = padded.block(p / 8, p % 8, 3, 3).reshaped<Eigen::RowMajor>().transpose();
  }
  return patches;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string pictures = argc > 1 ? argv[1] : ".";
  const Digits digits = read_digits(digits_path(argc, argv));

  // Similar strokes attend to each other; a patch is not compared with itself.
  const auto score = heed::gaussian(2);
  const auto mask = !heed::mask_if([](Index, Index, Index i, Index j) { return i == j; });
  const std::array<Index, 4> chosen{10, 27, 37, 60};

  constexpr double pixel = 20, gap = 24;
  plot::Picture picture(2 * gap + 5 * 8 * pixel + 4 * gap, 3 * (8 * pixel + gap) + 2 * gap);
  picture.text({gap, 30}, "A patch (framed) and what it attends to", 15, "start",
               "font-weight=\"bold\"");
  for (Index n = 0; n < 3; ++n) {
    const Matrix image = Eigen::Map<const Matrix>(digits.images.row(n).data(), 8, 8);
    const Matrix patches = cut(image);
    const auto weights =
        heed::attention_with_weights(patches, patches, patches, score, mask).weights;
    const double y = 48 + static_cast<double>(n) * (8 * pixel + gap);
    picture.image({gap, y}, pixel, image);
    for (std::size_t c = 0; c < chosen.size(); ++c) {
      const Index p = chosen[c];
      const plot::Point corner{gap + static_cast<double>(c + 1) * (8 * pixel + gap), y};
      picture.image(corner, pixel, image * 0.5f);
      Index most = 0;
      const float largest = weights.row(p).maxCoeff(&most);
      if (n == 0) {
        std::printf("patch around row %td, column %td attends most to row %td, column %td (%.3f)\n",
                    p / 8, p % 8, most / 8, most % 8, largest);
      }
      for (Index j = 0; j < 64; ++j) {
        picture.box({corner.x + pixel * static_cast<double>(j % 8),
                     corner.y + pixel * static_cast<double>(j / 8)},
                    pixel, pixel, "#f07800",
                    "fill-opacity=\"" + std::to_string(0.85f * weights(p, j) / largest) + "\"");
      }
      picture.box({corner.x + pixel * static_cast<double>(p % 8),
                   corner.y + pixel * static_cast<double>(p / 8)},
                  pixel, pixel, "none", "stroke=\"#0050a0\" stroke-width=\"2.5\"");
    }
  }
  picture.save(pictures + "/08_image_patches.svg");
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
