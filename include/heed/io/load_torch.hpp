#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "heed/core/view.hpp"
#include "heed/io/safetensors.hpp"
#include "heed/module/linear.hpp"
#include "heed/module/multi_head_attention.hpp"

namespace heed {

/// Reads the weights of PyTorch's nn.MultiheadAttention: from `in_proj_weight`, the query's rows
/// above the key's and the value's, or from `q_proj_weight`, `k_proj_weight` and `v_proj_weight`;
/// `in_proj_bias`; `out_proj.weight` and `out_proj.bias`. Projections stored as layers of their own
/// (`q_proj.weight`, `q_proj.bias`, ...) are read too. `prefix` stands before all names, as in
/// "encoder.layers.0.self_attn"; the dot after it may be left out. Types are converted as by load.
/// std::invalid_argument where a tensor is missing or does not fit, where only one of module and
/// file has biases, and where the file has what the module cannot express (`bias_k`, `bias_v`); the
/// module is then as it was before.
template <class Scalar>
void load_torch(MultiHeadAttention<Scalar>& module, const SafeTensors& file,
                std::string_view prefix = "") {
  constexpr const char* function = "load_torch";
  std::string path(prefix);
  if (!path.empty() && path.back() != '.') path += '.';
  struct Part {
    const char* ours;
    std::string theirs;
    Linear<Scalar>& layer;
  };
  const std::vector<Part> inputs{{"query_projection", path + "q_proj", module.query_projection},
                                 {"key_projection", path + "k_proj", module.key_projection},
                                 {"value_projection", path + "v_proj", module.value_projection}};
  const Part output{"output_projection", path + "out_proj", module.output_projection};
  for (const char* unknown : {"bias_k", "bias_v"}) {
    if (file.contains(path + unknown)) {
      file.refuse(function, path + unknown, "MultiHeadAttention has no such parameter");
    }
  }
  if (module.query_projection.weight.size() == 0) {
    detail::fail(function, "the module has no parameters; it needs its sizes before it is loaded");
  }

  std::vector<detail::Assignment> assignments;
  const auto assign = [&](const Part& part, auto& value, const char* what, const std::string& name,
                          Index first = 0, Index total = -1) {
    assignments.emplace_back(function, file, std::string(part.ours) + what, value, name, first,
                             total);
  };
  // Of several layers in one tensor, each takes its rows.
  const auto assign_stacked = [&](auto member, const char* what, const std::string& name) {
    Index total = 0, first = 0;
    for (const Part& part : inputs) total += (part.layer.*member).rows();
    for (const Part& part : inputs) {
      assign(part, part.layer.*member, what, name, first, total);
      first += (part.layer.*member).rows();
    }
  };
  const auto check_bias = [&](const Part& part, const std::string& name) {
    if (file.contains(name) != (part.layer.bias.size() > 0)) {
      file.refuse(
          function, name,
          file.contains(name) ? "the module has no bias in " : "it is missing, for the bias of ",
          part.ours);
    }
    return part.layer.bias.size() > 0;
  };

  if (file.contains(path + "in_proj_weight")) {
    assign_stacked(&Linear<Scalar>::weight, ".weight", path + "in_proj_weight");
  } else {
    for (const Part& part : inputs) {
      const bool layer = file.contains(part.theirs + ".weight");
      assign(part, part.layer.weight, ".weight", part.theirs + (layer ? ".weight" : "_weight"));
    }
  }
  if (file.contains(path + "q_proj.weight")) {
    for (const Part& part : inputs) {
      if (check_bias(part, part.theirs + ".bias")) {
        assign(part, part.layer.bias, ".bias", part.theirs + ".bias");
      }
    }
  } else {
    bool all = true;
    for (const Part& part : inputs) all &= check_bias(part, path + "in_proj_bias");
    if (all) assign_stacked(&Linear<Scalar>::bias, ".bias", path + "in_proj_bias");
  }
  assign(output, output.layer.weight, ".weight", output.theirs + ".weight");
  if (check_bias(output, output.theirs + ".bias")) {
    assign(output, output.layer.bias, ".bias", output.theirs + ".bias");
  }
  for (const auto& assignment : assignments) assignment.write();
}

}  // namespace heed
