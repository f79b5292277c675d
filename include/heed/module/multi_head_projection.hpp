#pragma once

#include <array>
#include <type_traits>

#include "heed/core/alias.hpp"
#include "heed/core/view.hpp"
#include "heed/module/linear.hpp"

namespace heed::detail {

/// Whether two inputs are one tensor.
template <class A, class B>
bool same_tensor(const View<A, 3>& a, const View<B, 3>& b) {
  if constexpr (std::is_same_v<std::remove_const_t<A>, std::remove_const_t<B>>) {
    return a.shape == b.shape && same_elements(rank4(a), rank4(b));
  } else {
    return false;
  }
}

/// A projection of an input, and where it goes.
template <class Scalar, class In, class Out>
struct Projection {
  const Linear<Scalar>& linear;
  View<In, 3> x;
  View<Out, 3> out;

  void run(Eigen::ThreadPoolInterface* pool) const { linear.into(out, x, pool); }
  auto target() const { return typename Linear<Scalar>::template Target<Out, 3>{linear, out}; }
};
template <class Scalar, class In, class Out>
Projection(const Linear<Scalar>&, const View<In, 3>&, const View<Out, 3>&)
    -> Projection<Scalar, In, Out>;

/// Keys and values, of a memory that is one tensor in one product.
void project(const auto& key, const auto& value, Eigen::ThreadPoolInterface* pool) {
  if (same_tensor(key.x, value.x)) {
    return key.linear.into_each(std::array{key.target(), value.target()}, key.x, pool);
  }
  key.run(pool);
  value.run(pool);
}

/// Queries as well, of self-attention in one product with them.
void project(const auto& query, const auto& key, const auto& value,
             Eigen::ThreadPoolInterface* pool) {
  if (same_tensor(query.x, key.x) && same_tensor(query.x, value.x)) {
    return query.linear.into_each(std::array{query.target(), key.target(), value.target()}, query.x,
                                  pool);
  }
  query.run(pool);
  project(key, value, pool);
}

}  // namespace heed::detail
