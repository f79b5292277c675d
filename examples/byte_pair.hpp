#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "unicode.hpp"
#include "word_piece.hpp"

/// Byte pair encoding (Sennrich et al., "Neural machine translation of rare words with subword
/// units", 2016) of the bytes of words, as of GPT-2 (Radford et al., 2019), with every digit a word
/// of its own. Printable bytes stand for themselves in the vocabulary, the others, the space among
/// them, as letters from U+0100 on.
class BytePair {
 public:
  /// A text file of three lists, each begun by a line with its name and length: `tokens` in the
  /// order of their ids, `merges`, two tokens a line, first comes first, and `special` tokens,
  /// which are found in the text as a whole. std::invalid_argument, with the path, where one is cut
  /// off or a merge makes no token.
  explicit BytePair(const std::string& path) {
    const auto refuse = [&](const std::string& what) {
      throw std::invalid_argument(path + ": " + what);
    };
    const std::vector<std::string> lines = read_lines(path);
    std::size_t at = 0;
    const auto section = [&](const std::string& name) {
      const std::string line = at < lines.size() ? lines[at++] : "";
      const std::string digits = line.substr(std::min(name.size(), line.size()));
      const bool number =
          digits.size() > 1 && digits.size() < 10 &&
          std::all_of(
              digits.begin() + 1, digits.end(), [](char c) { return c >= '0' && c <= '9'; });
      if (line.substr(0, name.size()) != name || !number || digits[0] != ' ') {
        refuse("line " + std::to_string(at) + " does not begin the " + name);
      }
      const std::size_t count = std::stoul(digits.substr(1));
      if (count > lines.size() - at) {
        refuse("of " + std::to_string(count) + " " + name + " there are " +
               std::to_string(lines.size() - at) + "; the file is cut off");
      }
      at += count;
      return std::pair(lines.begin() + static_cast<std::ptrdiff_t>(at - count),
                       lines.begin() + static_cast<std::ptrdiff_t>(at));
    };
    const auto [first_token, last_token] = section("tokens");
    tokens_.assign(first_token, last_token);
    for (const std::string& token : tokens_) {
      if (!ids_.emplace(token, static_cast<int>(ids_.size())).second) {
        refuse("the token '" + token + "' is there twice");
      }
    }
    const auto [first_merge, last_merge] = section("merges");
    for (auto line = first_merge; line != last_merge; ++line) {
      const std::size_t space = line->find(' ');
      const std::string_view left = std::string_view(*line).substr(0, space);
      const std::string_view right =
          space == std::string::npos ? "" : std::string_view(*line).substr(space + 1);
      const auto one = ids_.find(left), other = ids_.find(right),
                 both = ids_.find(std::string(left) + std::string(right));
      if (one == ids_.end() || other == ids_.end() || both == ids_.end()) {
        refuse("the merge '" + *line + "' is not of two tokens that make a third");
      }
      merges_.emplace(pair(one->second, other->second),
                      Merge{static_cast<int>(line - first_merge), both->second});
    }
    const auto [first_special, last_special] = section("special");
    for (auto token = first_special; token != last_special; ++token) {
      if (token->empty() || !ids_.contains(*token)) {
        refuse("the special token '" + *token + "' is not among the tokens");
      }
      special_.push_back(*token);
    }
    if (at != lines.size()) refuse("there are lines behind the last list");
    std::stable_sort(special_.begin(), special_.end(),
                     [](const auto& a, const auto& b) { return a.size() > b.size(); });

    char32_t letter = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      letters_[byte] = printable ? byte : letter++;
      bytes_.emplace(letters_[byte], static_cast<char>(byte));
    }
  }

  std::size_t size() const { return tokens_.size(); }

  /// The id of a token, spelled as in the vocabulary.
  int id(std::string_view token) const {
    const auto found = ids_.find(token);
    if (found != ids_.end()) return found->second;
    throw std::invalid_argument("the vocabulary has no '" + std::string(token) + "'");
  }

  std::vector<int> operator()(std::string_view text) const {
    std::vector<int> ids;
    std::size_t begin = 0;
    for (std::size_t at = 0; at < text.size();) {
      const auto special = std::find_if(special_.begin(), special_.end(), [&](const auto& token) {
        return text.substr(at, token.size()) == token;
      });
      if (special == special_.end()) {
        ++at;
        continue;
      }
      append_words(ids, text.substr(begin, at - begin));
      ids.push_back(id(*special));
      begin = at += special->size();
    }
    append_words(ids, text.substr(begin));
    return ids;
  }

  /// The bytes that a token stands for. One alone may be a part of a letter.
  std::string decode(int token) const {
    if (token < 0 || static_cast<std::size_t>(token) >= tokens_.size()) {
      throw std::invalid_argument("there is no token " + std::to_string(token));
    }
    const std::string& spelled = tokens_[static_cast<std::size_t>(token)];
    if (std::find(special_.begin(), special_.end(), spelled) != special_.end()) return spelled;
    std::string text;
    for (const char32_t letter : unicode::decode(spelled)) {
      const auto byte = bytes_.find(letter);
      if (byte != bytes_.end()) text += byte->second;
    }
    return text;
  }
  std::string decode(const std::vector<int>& ids) const {
    std::string text;
    for (const int token : ids) text += decode(token);
    return text;
  }

  /// Words with the space before them, as the expression
  ///   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  /// cuts what lies between digits, each of which stands alone.
  static std::vector<std::u32string> words(std::string_view text) {
    const std::u32string c = unicode::decode(text);
    const auto run = [&c](std::size_t at, const auto& belongs) {
      while (at < c.size() && belongs(c[at])) ++at;
      return at;
    };
    const auto is_other = [](char32_t x) {
      return !unicode::is_space(x) && !unicode::is_letter(x) && !unicode::is_number(x);
    };
    std::vector<std::u32string> result;
    for (std::size_t at = 0; at < c.size();) {
      std::size_t end = at;
      if (c[at] == U'\'') {
        for (const std::u32string_view ending :
             {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"}) {
          if (std::u32string_view(c).substr(at, ending.size()) == ending) end = at + ending.size();
        }
      }
      const std::size_t start = c[at] == U' ' ? at + 1 : at;
      if (end == at && unicode::is_number(c[at])) {
        end = at + 1;
      } else if (end == at && start < c.size() && unicode::is_letter(c[start])) {
        end = run(start, unicode::is_letter);
      } else if (end == at && start < c.size() && is_other(c[start])) {
        end = run(start, is_other);
      } else if (end == at) {
        // A run of spaces leaves its last one to the word behind it.
        end = run(at, unicode::is_space);
        if (end < c.size() && !unicode::is_number(c[end]) && end - at > 1) --end;
      }
      result.push_back(c.substr(at, end - at));
      at = end;
    }
    return result;
  }

 private:
  struct Merge {
    int rank, token;
  };
  static std::uint64_t pair(int left, int right) {
    return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
  }

  void append_words(std::vector<int>& ids, std::string_view text) const {
    for (const std::u32string& word : words(text)) {
      std::vector<int> parts;
      for (const char byte : unicode::encode(word)) {
        std::string letter;
        unicode::append(letter, letters_[static_cast<unsigned char>(byte)]);
        const auto found = ids_.find(letter);
        if (found != ids_.end()) parts.push_back(found->second);
      }
      merge(parts);
      ids.insert(ids.end(), parts.begin(), parts.end());
    }
  }

  /// Joins the pair that comes first in the list of merges until there is none.
  void merge(std::vector<int>& parts) const {
    for (;;) {
      Merge best{std::numeric_limits<int>::max(), 0};
      std::size_t place = 0;
      for (std::size_t n = 0; n + 1 < parts.size(); ++n) {
        const auto found = merges_.find(pair(parts[n], parts[n + 1]));
        if (found == merges_.end() || found->second.rank >= best.rank) continue;
        best = found->second;
        place = n;
      }
      if (best.rank == std::numeric_limits<int>::max()) return;
      parts[place] = best.token;
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(place) + 1);
    }
  }

  std::vector<std::string> tokens_, special_;
  TokenIds ids_;
  std::unordered_map<std::uint64_t, Merge> merges_;
  std::array<char32_t, 256> letters_{};
  std::unordered_map<char32_t, char> bytes_;
};
