#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <Eigen/Core>  // first: its intrinsics declare posix_memalign without noexcept

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HEED_TEST_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define HEED_TEST_SANITIZED
#endif
#endif

// For one translation unit of a program. Eigen allocates with malloc and the library with operator
// new, which glibc's malloc serves: every allocation of the process passes here.
#if defined(__GLIBC__) && !defined(HEED_TEST_SANITIZED)
#define HEED_TEST_COUNTS_ALLOCATIONS
namespace heed::test {
inline std::atomic<long> allocations{0};
}
extern "C" {
void* __libc_malloc(std::size_t);                 // NOLINT
void* __libc_calloc(std::size_t, std::size_t);    // NOLINT
void* __libc_realloc(void*, std::size_t);         // NOLINT
void* __libc_memalign(std::size_t, std::size_t);  // NOLINT
void* malloc(std::size_t size) noexcept {
  ++heed::test::allocations;
  return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) noexcept {
  ++heed::test::allocations;
  return __libc_calloc(count, size);
}
void* realloc(void* old, std::size_t size) noexcept {
  ++heed::test::allocations;
  return __libc_realloc(old, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  ++heed::test::allocations;
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** result, std::size_t alignment, std::size_t size) noexcept {
  ++heed::test::allocations;
  *result = __libc_memalign(alignment, size);
  return *result == nullptr;
}
}

namespace heed::test {

template <class F>
long allocations_of(F f) {
  const long before = allocations;
  f();
  return allocations - before;
}

}  // namespace heed::test
#endif
