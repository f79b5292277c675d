#pragma once

#include <cstddef>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>
#include <heed/heed.hpp>
#include <heed/safetensors.hpp>

#include "model_files.hpp"

/// What the examples with pretrained models share: blocks to be loaded, and names that other
/// programs gave the parameters.
namespace pretrained {

using heed::Index;

/// A name with the first of each pair, where it occurs, replaced by the second, in turn.
inline std::string renamed(std::string name,
                           std::initializer_list<std::pair<const char*, const char*>> pairs) {
  for (const auto& [ours, theirs] : pairs) {
    const std::size_t at = name.find(ours);
    if (at != std::string::npos) name.replace(at, std::string(ours).size(), theirs);
  }
  return name;
}

/// Copies of one block, to be loaded.
template <class Scalar>
std::vector<heed::TransformerBlock<Scalar>> blocks(Index count, const heed::BlockConfig& config) {
  return {static_cast<std::size_t>(count), heed::TransformerBlock<Scalar>(config)};
}

/// The rows of a (batch, seq, dim) tensor as a matrix.
template <class Scalar>
Eigen::Map<heed::Matrix<Scalar>> rows(heed::Tensor<Scalar, 3>& x) {
  return {x.data(), x.dimension(0) * x.dimension(1), x.dimension(2)};
}

}  // namespace pretrained
