#pragma once

#include <vector>
#include <heed/heed.hpp>

#include "adam.hpp"

/// Leave-one-out: a row is predicted from all others, as a row predicted from itself would ask for
/// a kernel as narrow as can be.
inline const auto all_others =
    !heed::mask_if([](auto, auto, auto query, auto key) { return query == key; });

/// Learns the widths of a Gaussian kernel that predicts each row of y from the others.
///   score(gradient): heed::gaussian of the widths, with where their gradient goes;
///   loss(prediction, gradient): the loss, and its gradient by the prediction.
/// -> the loss before each step
template <class Score, class Loss>
std::vector<float> learn_widths(heed::Vector<float>& widths, const heed::Matrix<float>& x,
                                const heed::Matrix<float>& y, const Score& score, const Loss& loss,
                                int steps, double rate) {
  Adam<float> adam;
  std::vector<float> losses;
  for (int step = 0; step < steps; ++step) {
    heed::Vector<float> gradient = heed::Vector<float>::Zero(widths.size());
    const auto kernel = score(gradient);
    const auto pass = heed::attention_forward(x, x, y, kernel, all_others);
    heed::Matrix<float> grad_output(y.rows(), y.cols());
    losses.push_back(loss(pass.output, grad_output));
    heed::attention_backward(x, x, y, pass, grad_output, kernel, all_others);
    adam.begin_step(rate);
    adam(widths, gradient);
  }
  return losses;
}
