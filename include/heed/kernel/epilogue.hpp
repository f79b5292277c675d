#pragma once

#include <concepts>
#include <utility>
#include <Eigen/Core>

namespace heed::detail {

using Eigen::Index;

/// Rows row .. row + rows-1 and columns column .. column + columns-1 of one matrix of a batch.
struct ProductBlock {
  Index batch, head, row, rows, column, columns;
};

/// What a product does with each block of its result as soon as the numbers are final, while they
/// are in a near cache, on the thread that made them: any callable that takes a ProductBlock, such
/// as one that adds a bias. The blocks cover the result once, in any order and on several threads
/// at a time. Refers to the callable, which outlives the product.
class Epilogue {
 public:
  Epilogue() = default;
  template <std::invocable<const ProductBlock&> F>
    requires(!std::same_as<F, Epilogue>)
  Epilogue(const F& f)
      : f_(&f), call_([](const void* object, const ProductBlock& block) {
          (*static_cast<const F*>(object))(block);
        }) {}

  /// That of the transposed result.
  Epilogue turned() const {
    Epilogue result = *this;
    result.turned_ = !turned_;
    return result;
  }

  void operator()(ProductBlock block) const {
    if (call_ == nullptr) return;
    if (turned_) {
      std::swap(block.row, block.column);
      std::swap(block.rows, block.columns);
    }
    call_(f_, block);
  }

 private:
  const void* f_ = nullptr;
  void (*call_)(const void*, const ProductBlock&) = nullptr;
  bool turned_ = false;
};

}  // namespace heed::detail
