#pragma once

#include <type_traits>

#include "heed/core/key_source.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/policy/key_set.hpp"

namespace heed::detail {

/// A copy of rows of a head, and of which.
template <class Number>
struct RowCopy {
  Number* data = nullptr;
  Index batch = -1, head = -1;
  KeyRange keys{0, 0};

  bool holds(Index of_batch, Index of_head, const KeyRange& wanted) const {
    return batch == of_batch && head == of_head && keys.begin <= wanted.begin &&
           wanted.end <= keys.end;
  }
};

/// Rows of keys or values as the register tiles read them, contiguous in themselves: where they
/// lie, or in a copy.
template <class Number, KeySource Source>
class SourceRows {
  using Element = typename Source::Element;

 public:
  /// `readers`: how often each row will be read. Rows that lie apart, as those of a head within a
  /// packed projection, meet in few sets of the caches (rows of 512 floats: in a sixteenth of the
  /// first level); where many panels of queries read them, a copy is worth its time.
  SourceRows(const Source& source, Index keys, Index readers = 0)
      : source_(source), width_(source.width()) {
    if (keys == 0) return;
    const auto run = source.run(0, 0, 0, keys);
    even_ = run.count == keys;
    in_place_ = std::is_same_v<Element, Number> && (run.column_stride == 1 || width_ <= 1) &&
                (run.row_stride == width_ || readers <= 16);
  }

  /// Whether no copy is ever made.
  bool in_place() const { return in_place_ && even_; }

  /// Rows first .. first + count-1 of a head, in the buffer of count * width numbers if need be.
  Rows<Number> get(Index batch, Index head, Index first, Index count, Number* buffer) const {
    if constexpr (std::is_same_v<Element, Number>) {
      if (in_place_) {
        const auto run = source_.run(batch, head, first, count);
        if (run.count == count) return {run.data, run.row_stride};
      }
    }
    for_each_source_run(source_, batch, head, first, count, [&](Index at, const auto& run) {
      copy_rows(run, width_, buffer + at * width_);
    });
    return {buffer, width_};
  }

  /// Rows `wanted` of a head, in place or in the copy, which then holds `more`, or
  /// them alone where that is empty. `more` holds them.
  Rows<Number> get(Index batch, Index head, const KeyRange& wanted, const KeyRange& more,
                   RowCopy<Number>& copy) const {
    if (in_place()) return get(batch, head, wanted.begin, wanted.end - wanted.begin, copy.data);
    if (!copy.holds(batch, head, wanted)) {
      const KeyRange all = more.begin < more.end ? more : wanted;
      const auto read = get(batch, head, all.begin, all.end - all.begin, copy.data);
      if (read.data != copy.data) return {read[wanted.begin - all.begin], read.stride};
      copy = {copy.data, batch, head, all};
    }
    return {copy.data + (wanted.begin - copy.keys.begin) * width_, width_};
  }

 private:
  const Source& source_;
  Index width_;
  bool even_ = true, in_place_ = true;
};

}  // namespace heed::detail
