#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "heed/cache/attention.hpp"
#include "heed/cache/held.hpp"
#include "heed/cache/new_rows.hpp"
#include "heed/cache/row_store.hpp"
#include "heed/core/error.hpp"
#include "heed/core/integers.hpp"
#include "heed/core/key_source.hpp"
#include "heed/core/view.hpp"

namespace heed {

/// A PagePool, with key_dim and value_dim features of a token for each of kv_heads.
struct PagePoolConfig {
  Index pages = 0, page_size = 16;  ///< tokens of a page
  Index kv_heads = 1, key_dim = 0, value_dim = 0;
};

template <class Element>
class PagedKeyValueCache;

namespace detail {

/// Pages, as (kv_heads, pages, page_size, dim), so that a head of pages taken one after the other
/// is read as one stream; each with the number of sequences that have it.
template <class Element>
class Pages {
 public:
  explicit Pages(const PagePoolConfig& config) : config_(checked(config)) {
    const Index rows = config.pages * config.kv_heads * config.page_size;
    keys_.assign(rows, config.key_dim);
    values_.assign(rows, config.value_dim);
    owners_.assign(at(config.pages), 0);
    free_.reserve(at(config.pages));
    for (Index page = config.pages; page-- > 0;) free_.push_back(page);
  }

  const PagePoolConfig& config() const { return config_; }
  Index free() const { return static_cast<Index>(free_.size()); }
  Index owners(Index page) const { return owners_[at(page)]; }

  /// A page for one owner; there must be one.
  Index take() {
    const Index page = free_.back();
    free_.pop_back();
    owners_[at(page)] = 1;
    return page;
  }
  void share(Index page) { ++owners_[at(page)]; }
  void give_back(Index page) {
    if (--owners_[at(page)] == 0) free_.push_back(page);
  }

  /// The first tokens of a page, copied to another.
  void copy(Index from, Index to, Index tokens) {
    for (Index h = 0; h < config_.kv_heads; ++h) {
      keys_.copy(row(from, h, 0), row(to, h, 0), tokens);
      values_.copy(row(from, h, 0), row(to, h, 0), tokens);
    }
  }
  /// Token t of entry b of new rows becomes a token of a page.
  template <class Rows>
  void write(Index page, Index token, const Rows& rows, Index b, Index t) {
    for (Index h = 0; h < config_.kv_heads; ++h) {
      keys_.write(row(page, h, token), rows.key, b, h, t);
      values_.write(row(page, h, token), rows.value, b, h, t);
    }
  }
  const RowStore<Element>& keys() const { return keys_; }
  const RowStore<Element>& values() const { return values_; }

 private:
  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
  static const PagePoolConfig& checked(const PagePoolConfig& config) {
    if (config.page_size < 1) detail::fail("PagePool", "page_size is ", config.page_size);
    for (const Index dim : {config.key_dim, config.value_dim}) {
      detail::check_extents(
          "PagePool", "the pool (kv_heads, pages, page_size, dim)",
          std::array<Index, 4>{config.kv_heads, config.pages, config.page_size, dim});
    }
    return config;
  }
  Index row(Index page, Index h, Index token) const {
    return (h * config_.pages + page) * config_.page_size + token;
  }

  PagePoolConfig config_;
  RowStore<Element> keys_, values_;
  std::vector<Index> owners_, free_;
};

/// Rows of sequences that lie in pages.
template <class Element_>
struct PagedRows {
  using Element = Element_;
  const RowStore<Element>& rows;
  Index pages, page_size;
  const std::vector<Index>* tables;

  Index width() const { return rows.dim(); }
  Run<Element> run(Index b, Index h, Index first, Index most) const {
    const auto& table = tables[b];
    auto number = static_cast<std::size_t>(first / page_size);
    // Behind the end of a shorter sequence there are rows too, of any page; no query sees them.
    const Index page = number < table.size() ? table[number] : 0;
    const Index token = first % page_size;
    Index count = page_size - token;
    // A run from the first key on tells whether a head lies evenly in every sequence: it ends with
    // its page. Others go on into pages that lie behind.
    if (first > 0) {
      while (count < most && number + 1 < table.size() && table[number + 1] == table[number] + 1) {
        ++number;
        count += page_size;
      }
    }
    return rows.run((h * pages + page) * page_size + token, std::min(most, count));
  }
};

}  // namespace detail

/// Memory for caches whose sequences grow by pages of `page_size` tokens (Kwon et al., "Efficient
/// memory management for large language model serving with PagedAttention", 2023). It lives as long
/// as the pool or a cache of it does. A pool and its caches belong to one thread at a time.
template <class Element>
class PagePool {
 public:
  explicit PagePool(const PagePoolConfig& config)
      : pages_(std::make_shared<detail::Pages<Element>>(config)) {}
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  const PagePoolConfig& config() const { return pages_->config(); }
  Index free_pages() const { return pages_->free(); }

 private:
  friend class PagedKeyValueCache<Element>;
  std::shared_ptr<detail::Pages<Element>> pages_;
};

/// A cache as KeyValueCache, of sequences that take pages from a pool as they grow, and share those
/// that they have in common. append throws std::length_error where the pool has too few; that and
/// bad input, which is std::invalid_argument, leave cache and pool as they were.
template <class Element_>
class PagedKeyValueCache {
 public:
  using Element = Element_;

  explicit PagedKeyValueCache(PagePool<Element>& pool, Index batch = 1) : pages_(pool.pages_) {
    if (batch < 0) detail::fail("PagedKeyValueCache", "batch is ", batch);
    detail::check_extents("PagedKeyValueCache", "the table (batch, pages)",
                          std::array<Index, 2>{batch, pages_->config().pages});
    lengths_.assign(at(batch), 0);
    tables_ = empty_tables();
  }
  ~PagedKeyValueCache() { clear(); }
  PagedKeyValueCache(PagedKeyValueCache&&) noexcept = default;
  PagedKeyValueCache& operator=(PagedKeyValueCache&& other) noexcept {
    pages_.swap(other.pages_);
    tables_.swap(other.tables_);
    lengths_.swap(other.lengths_);
    return *this;
  }

  /// k (batch, kv_heads, n, key_dim) and v (batch, kv_heads, n, value_dim): n tokens at the end of
  /// every sequence.
  template <class K, class V>
  void append(const K& k, const V& v) {
    const auto rows = detail::rows_of_all(k, v, extents());
    check_room(0, batch(), rows.tokens());
    for (Index b = 0; b < batch(); ++b) write(b, rows, b);
  }
  /// k (kv_heads, n, key_dim) and v (kv_heads, n, value_dim): n tokens at the end of sequence b.
  template <class K, class V>
  void append(Index b, const K& k, const V& v) {
    const auto rows = detail::rows_of_one(b, k, v, extents());
    check_room(b, b + 1, rows.tokens());
    write(b, rows, 0);
  }

  Index length(Index b = 0) const {
    detail::check_sequence("length", b, batch());
    return lengths_[at(b)];
  }

  /// Takes tokens back until n are left, and gives back pages that are no longer needed.
  void truncate(Index b, Index n) {
    detail::check_sequence("truncate", b, batch());
    detail::check_truncation(b, n, lengths_[at(b)]);
    shrink(b, n);
  }

  /// Sequence `to` becomes what `from` is. No tokens are copied: the two share their pages, and
  /// what one of them appends the other does not see.
  void fork(Index from, Index to) {
    detail::check_sequence("fork", from, batch());
    detail::check_sequence("fork", to, batch());
    if (from == to) return;
    shrink(to, 0);
    tables_[at(to)].assign(tables_[at(from)].begin(), tables_[at(from)].end());
    for (const Index page : tables_[at(to)]) pages_->share(page);
    lengths_[at(to)] = lengths_[at(from)];
  }

  /// Sequence b becomes what sequence indices[b] was, without a copy of tokens: beams.
  template <class Indices>
    requires detail::Integers<Indices>
  void reorder(const Indices& indices) {
    const auto order = detail::integer_view(indices);
    static_assert(decltype(order)::Rank == 1, "heed: reorder takes one index for each sequence");
    detail::check_order(order, batch());
    auto tables = empty_tables();
    std::vector<Index> lengths(at(batch()), 0);
    for (Index b = 0; b < batch(); ++b) {
      const auto from = at(static_cast<Index>(order(b)));
      tables[at(b)].assign(tables_[from].begin(), tables_[from].end());
      lengths[at(b)] = lengths_[from];
    }
    for (const auto& table : tables) {
      for (const Index page : table) pages_->share(page);
    }
    clear();
    tables_.swap(tables);
    lengths_.swap(lengths);
  }
  void reorder(std::initializer_list<Index> indices) { reorder(std::vector<Index>(indices)); }

  /// All sequences become empty, and their pages free.
  void clear() {
    for (Index b = 0; b < batch(); ++b) shrink(b, 0);
  }
  void clear(Index b) {
    detail::check_sequence("clear", b, batch());
    shrink(b, 0);
  }

  // What attention reads.
  detail::CacheExtents extents() const {
    const PagePoolConfig& config = pages_->config();
    return {batch(), config.kv_heads, config.key_dim, config.value_dim};
  }
  HeldTokens held(Index b) const { return {.length = lengths_[at(b)]}; }
  detail::PagedRows<Element> key_rows(Index) const {
    const PagePoolConfig& config = pages_->config();
    return {pages_->keys(), config.pages, config.page_size, tables_.data()};
  }
  detail::PagedRows<Element> value_rows(Index) const {
    const PagePoolConfig& config = pages_->config();
    return {pages_->values(), config.pages, config.page_size, tables_.data()};
  }

 private:
  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
  Index batch() const { return static_cast<Index>(lengths_.size()); }

  Index pages_for(Index tokens) const {
    const Index size = pages_->config().page_size;
    return tokens / size + (tokens % size != 0);
  }
  /// With room for every page that there is, so that append does not allocate.
  std::vector<std::vector<Index>> empty_tables() const {
    std::vector<std::vector<Index>> tables(lengths_.size());
    for (auto& table : tables) table.reserve(at(pages_->config().pages));
    return tables;
  }

  bool tail_is_partial(Index b) const { return lengths_[at(b)] % pages_->config().page_size != 0; }

  /// Whether sequence b has to copy its last page before it writes, once those from `first` on that
  /// share the page have done so: the last owner writes in place.
  bool copies_tail(Index first, Index b) const {
    if (!tail_is_partial(b)) return false;
    const Index page = tables_[at(b)].back();
    Index owners = pages_->owners(page);
    for (Index other = first; other < b && owners > 1; ++other) {
      if (tail_is_partial(other) && tables_[at(other)].back() == page) --owners;
    }
    return owners > 1;
  }

  /// Refuses n more tokens of the sequences first .. last-1 for which there are not enough pages.
  void check_room(Index first, Index last, Index n) const {
    if (n == 0) return;
    const Index free = pages_->free();
    Index needed = 0;
    for (Index b = first; b < last; ++b) {
      needed += copies_tail(first, b);
      // Within pages_for(n) + 1; what is far too much does not add up to an overflow.
      needed += pages_for(lengths_[at(b)] + n) - pages_for(lengths_[at(b)]);
      if (needed > free) {
        detail::fail<std::length_error>("append", n, " tokens (axis 2) need more pages of ",
                                        pages_->config().page_size, " than the ", free,
                                        " that are free of ", pages_->config().pages);
      }
    }
  }

  template <class Rows>
  void write(Index b, const Rows& rows, Index from_batch) {
    if (rows.tokens() == 0) return;
    auto& table = tables_[at(b)];
    Index& length = lengths_[at(b)];
    const Index size = pages_->config().page_size;
    if (copies_tail(b, b)) {
      const Index own = pages_->take();
      pages_->copy(table.back(), own, length % size);
      pages_->give_back(table.back());
      table.back() = own;
    }
    for (Index t = 0; t < rows.tokens(); ++t, ++length) {
      if (length % size == 0) table.push_back(pages_->take());
      pages_->write(table.back(), length % size, rows, from_batch, t);
    }
  }

  void shrink(Index b, Index n) {
    auto& table = tables_[at(b)];
    while (static_cast<Index>(table.size()) > pages_for(n)) {
      pages_->give_back(table.back());
      table.pop_back();
    }
    lengths_[at(b)] = n;
  }

  std::shared_ptr<detail::Pages<Element>> pages_;
  std::vector<std::vector<Index>> tables_;
  std::vector<Index> lengths_;
};

}  // namespace heed
