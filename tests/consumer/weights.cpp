// Weights saved and loaded, which needs heed::safetensors.
#include <cstdio>

#include <heed/linear.hpp>
#include <heed/safetensors.hpp>

int main() {
  heed::Linear<float> saved{heed::Matrix<float>::Random(3, 2), heed::Vector<float>::Random(3)};
  heed::Linear<float> loaded{heed::Matrix<float>(3, 2), heed::Vector<float>(3)};
  const char* const path = "heed_consumer_weights.safetensors";
  heed::save(saved, path);
  heed::load(loaded, heed::SafeTensors(path));
  std::remove(path);
  return loaded.weight == saved.weight && loaded.bias == saved.bias ? 0 : 1;
}
