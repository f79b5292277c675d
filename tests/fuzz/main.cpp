#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <vector>
#include <Eigen/Core>

#include "fuzz/draw.hpp"
#include "heed/core/parallel.hpp"

/// With libFuzzer (clang++ -fsanitize=fuzzer -DHEED_LIBFUZZER) the target, else a program:
///
///   fuzz [rounds = 1000] [seed = 1] [kind: a name, or all]     rounds < 0: seconds
///   fuzz file ...                                              inputs that a fuzzer has kept

namespace {

/// Blocks go by the caches, which hold all that is drawn here: rounds whose last byte is even
/// believe in smaller ones.
void believe_in_caches(bool small) {
  static const auto first = Eigen::l1CacheSize(), second = Eigen::l2CacheSize(),
                    third = Eigen::l3CacheSize();
  Eigen::setCpuCacheSizes(small ? 1 << 12 : first, small ? 1 << 14 : second, third);
}

/// The first byte chooses what the round is about.
void run(const std::uint8_t* data, std::size_t size, int kind = -1) {
  constexpr auto kinds = std::size(heed::fuzz::kinds);
  if (size == 0) return;
  believe_in_caches(data[size - 1] % 2 == 0);
  heed::detail::least_shared = 0;  // threads share the smallest of products
  const auto chosen = kind < 0 ? data[0] % kinds : static_cast<std::size_t>(kind);
  try {
    heed::fuzz::Draw draw(data + 1, size - 1);
    heed::fuzz::kinds[chosen].round(draw);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "\n%s: %s\n", heed::fuzz::kinds[chosen].name, error.what());
    for (std::size_t n = 0; n < size; ++n) std::fprintf(stderr, "%02x", data[n]);
    std::fprintf(stderr, "\n");
    std::abort();
  }
}

}  // namespace

#ifdef HEED_LIBFUZZER
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
#ifdef HEED_FUZZ_KIND
  run(data, size, HEED_FUZZ_KIND);
#else
  run(data, size);
#endif
  return 0;
}
#else
int main(int argc, char** argv) {
  const long rounds = argc > 1 ? std::strtol(argv[1], nullptr, 10) : 1000;
  if (argc > 1 && rounds == 0) {
    for (int n = 1; n < argc; ++n) {
      std::vector<std::uint8_t> bytes;
      if (std::FILE* file = std::fopen(argv[n], "rb")) {
        for (int byte; (byte = std::fgetc(file)) != EOF;) {
          bytes.push_back(static_cast<std::uint8_t>(byte));
        }
        std::fclose(file);
      }
      run(bytes.data(), bytes.size());
    }
    return 0;
  }
  const auto seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  int only = -1;
  for (int n = 0; n < static_cast<int>(std::size(heed::fuzz::kinds)) && argc > 3; ++n) {
    if (std::strcmp(argv[3], heed::fuzz::kinds[n].name) == 0) only = n;
  }
  const auto start = std::time(nullptr);
  long done = 0;
  for (; rounds < 0 ? std::time(nullptr) - start < -rounds : done < rounds; ++done) {
    std::mt19937_64 engine(seed * 0x9e3779b97f4a7c15 + static_cast<std::uint64_t>(done));
    std::vector<std::uint8_t> bytes(256);
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(engine());
    run(bytes.data(), bytes.size(), only);
  }
  std::printf("%ld rounds, no findings\n", done);
}
#endif
