#pragma once

#include "heed/core/view.hpp"
#include "heed/policy/options.hpp"

namespace heed {

namespace detail {

/// Makes what it is a member of a thing that may be moved, but not copied.
struct MoveOnly {
  MoveOnly() = default;
  MoveOnly(MoveOnly&&) = default;
  MoveOnly& operator=(MoveOnly&&) = default;
};

}  // namespace detail

/// A branch of a pass through a TransformerBlock.
template <class Stream, class Inner>
struct BranchPass {
  Stream between;  ///< what the branch reads, normalised, or the sum, before it is normalised
  Inner inner;     ///< the pass through the branch
};

/// What a pass through a TransformerBlock gives; all but the output is what backward needs. It
/// refers to its own tensors, so it is moved and never copied; x and the memory must outlive it.
template <class X, class Output, class Stream, class Attention, class Cross, class Feed>
struct BlockPass {
  detail::ViewOf<const X> input;
  BranchPass<Stream, Attention> attention;
  Stream after_attention;
  Cross cross;  ///< a BranchPass, or std::nullptr_t where there is no memory
  Stream after_cross;
  BranchPass<Stream, Feed> mlp;
  Output output;
  AttentionOptions options;
  detail::MoveOnly refers_to_itself = {};
};

/// What the backward pass of a block with a memory gives.
template <class Input, class Memory, class Parameters>
struct BlockGradients {
  Input input;
  Memory memory;
  Parameters parameters;
};

}  // namespace heed
