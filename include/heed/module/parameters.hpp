#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"

namespace heed {
namespace detail {

/// Takes every member.
struct AnyMember {
  template <class... T>
  void operator()(std::string_view, T&...) const {}
};

template <class T>
concept HasMembers = requires(T& module) { std::remove_const_t<T>::members(AnyMember(), module); };

template <class T>
inline constexpr bool is_list = false;
template <class T, class Allocator>
inline constexpr bool is_list<std::vector<T, Allocator>> = true;

/// f(path, parameter of each module...) for all parameters below modules of one type side by side.
template <class F, class First, class... Same>
void walk_parameters(std::string& path, const F& f, First& first, Same&... same) {
  const std::size_t length = path.size();
  const auto below = [&](std::string_view name, auto&... member) {
    if (length > 0) path += '.';
    path += name;
    walk_parameters(path, f, member...);
    path.resize(length);
  };
  if constexpr (is_list<std::remove_const_t<First>>) {
    if (!((same.size() == first.size()) && ...)) {
      fail("for_each_parameter", path, " has ", static_cast<Index>(first.size()),
           " entries, and not as many gradients");
    }
    for (std::size_t n = 0; n < first.size(); ++n) below(std::to_string(n), first[n], same[n]...);
  } else if constexpr (HasMembers<First>) {
    std::remove_const_t<First>::members(below, first, same...);
  } else {
    static_assert(EigenDense<std::remove_const_t<First>>,
                  "heed: a member is a matrix, a vector, a module or a std::vector of modules");
    f(path, first, same...);
  }
}

/// f(parameter) for all parameters below a module.
template <class T>
void each_parameter(const T& module, const auto& f) {
  if constexpr (HasMembers<const T>) {
    T::members([&f](std::string_view, const auto& member) { each_parameter(member, f); }, module);
  } else {
    f(module);
  }
}

}  // namespace detail

/// What has parameters: a type that names its members, once, for any number of modules of its type
/// side by side. A member is a matrix, a vector, a module or a std::vector of modules.
///
///   struct Pair {
///     heed::Linear<float> up, down;
///     static void members(const auto& visit, auto&... self) {
///       visit("up", self.up...);
///       visit("down", self.down...);
///     }
///   };
template <class T>
concept Module = detail::HasMembers<T>;

/// Calls f(name, value) for each parameter of a module, a Matrix or a Vector, in the order of the
/// members. The name, a std::string_view, is that of the members on the way there, with the places
/// in lists: "attention.query_projection.weight", "blocks.0.norm.weight". A parameter without
/// elements, such as a bias that is absent, is left out.
template <Module M, class F>
void for_each_parameter(M& module, F&& f) {
  std::string path;
  detail::walk_parameters(
      path,
      [&f](std::string_view name, auto& value) {
        if (value.size() > 0) f(name, value);
      },
      module);
}

/// Calls f(value, gradient) for each of these parameters with its gradient as the module's backward
/// gives it. std::invalid_argument, before any call, where the shapes differ.
template <Module M, class Gradients, class F>
  requires(std::is_same_v<std::remove_const_t<M>, Gradients>)
void for_each_parameter(M& module, const Gradients& gradients, F&& f) {
  std::string path;
  detail::walk_parameters(
      path,
      [](const std::string& name, const auto& value, const auto& gradient) {
        detail::check_gradient_shape("for_each_parameter", name.c_str(),
                                     std::array<Index, 2>{value.rows(), value.cols()},
                                     std::array<Index, 2>{gradient.rows(), gradient.cols()});
      },
      module, gradients);
  detail::walk_parameters(
      path,
      [&f](std::string_view, auto& value, const auto& gradient) {
        if (value.size() > 0) f(value, gradient);
      },
      module, gradients);
}

}  // namespace heed
