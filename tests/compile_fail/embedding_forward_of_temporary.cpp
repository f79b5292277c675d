// expect: deleted
#include <vector>
#include <heed/embedding.hpp>

int main() {
  const heed::Embedding<float> embedding(10, 8);
  const auto pass = embedding.forward(std::vector<int>{1, 2, 3});
}
