#pragma once

#include <algorithm>
#include <Eigen/Core>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"

namespace heed::detail {

/// Work in several parts, each of `pieces` that are about as heavy as one another.
struct WorkPart {
  Index number, pieces;
  Index weight;  // of a piece, at least 1
  Index before;  // weight of the parts before, once they are in order
};

/// body(number, first, last) for runs that cover the pieces of all parts, on as many threads as the
/// pool has; on one, in the order of the parts. All parts are one pool of work: the parts of the
/// heaviest pieces come first, so that what is left at the end is light, and the runs that are
/// taken become lighter as well.
template <class Body>
void parallel_for_parts(Eigen::ThreadPoolInterface* pool, WorkPart* parts, Index count,
                        const Body& body) {
  const Index threads = pool ? pool->NumThreads() : 1;
  if (threads <= 1) {
    for (const WorkPart* part = parts; part != parts + count; ++part) {
      if (part->pieces > 0) body(part->number, Index(0), part->pieces);
    }
    return;
  }
  std::sort(parts, parts + count, [](const WorkPart& a, const WorkPart& b) {
    return a.weight != b.weight ? a.weight > b.weight : a.number < b.number;
  });
  Index total = 0, pieces = 0;
  for (Index n = 0; n < count; ++n) {
    parts[n].before = total;
    total += parts[n].pieces * parts[n].weight;
    pieces += parts[n].pieces;
  }
  const Index runs = std::min(threads * 8, pieces);
  // Where run n begins on the line of all weights: run n is proportional to runs - n.
  const auto start = [&](Index n) {
    const double left = static_cast<double>(runs - n) / static_cast<double>(runs);
    return total - static_cast<Index>(static_cast<double>(total) * left * left);
  };
  parallel_for(pool, runs, [&](Index first_run, Index last_run) {
    const Index from = first_run == 0 ? 0 : start(first_run);
    const Index to = last_run == runs ? total : start(last_run);
    auto part = std::upper_bound(parts, parts + count, from,
                                 [](Index at, const WorkPart& p) { return at < p.before; });
    if (part != parts) --part;
    for (; part != parts + count && part->before < to; ++part) {
      // The pieces that begin in from .. to-1.
      const auto piece = [&](Index at) {
        const Index past = std::max<Index>(at - part->before, 0);
        return std::min((past + part->weight - 1) / part->weight, part->pieces);
      };
      const Index first = piece(from), last = piece(to);
      if (first < last) body(part->number, first, last);
    }
  });
}

}  // namespace heed::detail
