#include "heed/module/parameters.hpp"

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "heed/additive_attention.hpp"
#include "heed/multi_head_attention.hpp"
#include "support.hpp"

namespace heed::test {
namespace {

/// A module of a user's own: a parameter, a module, and a list of modules.
struct Tower {
  struct Floor {
    Linear<float> wall;
    Vector<float> door;
    static void members(const auto& visit, auto&... self) {
      visit("wall", self.wall...);
      visit("door", self.door...);
    }
  };
  Matrix<float> ground;
  MultiHeadAttention<float> attention;
  std::vector<Floor> floors;
  static void members(const auto& visit, auto&... self) {
    visit("ground", self.ground...);
    visit("attention", self.attention...);
    visit("floors", self.floors...);
  }
};

Tower tower(bool bias) {
  const auto floor = [&](float x) {
    return Tower::Floor{
        {Matrix<float>::Constant(3, 2, x), Vector<float>::Constant(bias ? 3 : 0, x)},
        Vector<float>::Constant(2, x)};
  };
  return {Matrix<float>::Constant(1, 4, 1),
          MultiHeadAttention<float>({.embed_dim = 4, .num_heads = 2, .bias = bias}, 1),
          {floor(2), floor(3)}};
}

template <class M>
std::vector<std::string> names(const M& module) {
  std::vector<std::string> result;
  for_each_parameter(module,
                     [&](std::string_view name, const auto&) { result.emplace_back(name); });
  return result;
}

using Names = std::vector<std::string>;

TEST(Parameters, HaveTheNamesOfTheMembers) {
  EXPECT_EQ(names(Linear<double>{Matrix<double>(2, 3), Vector<double>(2)}),
            (Names{"weight", "bias"}));
  EXPECT_EQ(names(Linear<double>{Matrix<double>(2, 3), {}}), (Names{"weight"}));
  EXPECT_EQ(names(AdditiveAttention<float>(2, 3, 4)),
            (Names{"query_projection.weight", "key_projection.weight", "score_weight"}));
  EXPECT_EQ(names(MultiHeadAttention<Eigen::half>({.embed_dim = 4, .num_heads = 2})),
            (Names{"query_projection.weight", "key_projection.weight", "value_projection.weight",
                   "output_projection.weight"}));
}

TEST(Parameters, OfAModuleOfTheUsersOwn) {
  static_assert(Module<Tower> && Module<const Tower> && !Module<Matrix<float>>);
  EXPECT_EQ(names(tower(true)),
            (Names{"ground", "attention.query_projection.weight", "attention.query_projection.bias",
                   "attention.key_projection.weight", "attention.key_projection.bias",
                   "attention.value_projection.weight", "attention.value_projection.bias",
                   "attention.output_projection.weight", "attention.output_projection.bias",
                   "floors.0.wall.weight", "floors.0.wall.bias", "floors.0.door",
                   "floors.1.wall.weight", "floors.1.wall.bias", "floors.1.door"}));
  Tower module = tower(false);
  for_each_parameter(module, [](std::string_view name, auto& value) {
    if (name == "floors.1.door") value.setConstant(7);
  });
  EXPECT_EQ(module.floors[1].door(1), 7);
  EXPECT_EQ(module.floors[0].door(1), 2);
}

TEST(Parameters, WithTheirGradients) {
  Tower module = tower(true);
  const Tower gradients = tower(true);
  std::size_t calls = 0;
  for_each_parameter(module, gradients, [&](auto& value, const auto& gradient) {
    EXPECT_EQ(value, gradient);
    value -= gradient;
    ++calls;
  });
  EXPECT_EQ(calls, names(module).size());
  for_each_parameter(module, [](std::string_view name, const auto& value) {
    EXPECT_EQ(value.cwiseAbs().maxCoeff(), 0) << name;
  });
}

TEST(Parameters, RefuseGradientsThatDoNotFit) {
  Tower module = tower(true);
  const Tower before = module;
  const auto expect = [&](const Tower& gradients, std::initializer_list<std::string> parts) {
    EXPECT_TRUE(refuses(
        [&] { for_each_parameter(module, gradients, [](auto& x, const auto&) { x.setZero(); }); },
        parts));
    EXPECT_EQ(module.ground, before.ground) << "written before the check";
  };
  expect(tower(false),
         {"heed::for_each_parameter", "attention.query_projection.bias", "(4, 1)", "(0, 1)"});
  Tower last = tower(true);
  last.floors[1].door.resize(3);
  expect(last, {"heed::for_each_parameter", "floors.1.door", "(2, 1)", "(3, 1)"});
  Tower shorter = tower(true);
  shorter.floors.pop_back();
  expect(shorter, {"heed::for_each_parameter", "floors", "2"});
}

}  // namespace
}  // namespace heed::test
