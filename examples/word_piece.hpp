#pragma once

#include <cstddef>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "unicode.hpp"

/// The tokens of a vocabulary file, one a line. std::runtime_error where it cannot be read,
/// std::invalid_argument where its last line does not end.
inline std::vector<std::string> read_lines(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<std::string> lines;
  std::string line;
  while (std::getline(file, line)) {
    if (file.eof()) throw std::invalid_argument(path + " ends within a line; is it cut off?");
    if (!line.empty() && line.back() == '\r') line.pop_back();
    lines.push_back(line);
  }
  return lines;
}

/// Finds strings by string_view.
struct TextHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const {
    return std::hash<std::string_view>()(text);
  }
};
using TokenIds = std::unordered_map<std::string, int, TextHash, std::equal_to<>>;

/// The tokenizer of BERT for text without capitals and accents (Devlin et al., 2019): words and
/// punctuation, each cut into the longest pieces that the vocabulary has (Schuster and Nakajima,
/// "Japanese and Korean voice search", 2012). Names of special tokens in the text are text.
class WordPiece {
 public:
  /// The tokens in the order of their ids; std::invalid_argument where one is there twice, or
  /// [UNK], [CLS] or [SEP] is not.
  explicit WordPiece(const std::vector<std::string>& tokens) {
    for (const std::string& token : tokens) {
      if (!ids_.emplace(token, static_cast<int>(ids_.size())).second) {
        throw std::invalid_argument("the vocabulary has '" + token + "' twice");
      }
    }
    unknown_ = special("[UNK]");
    begin_ = special("[CLS]");
    end_ = special("[SEP]");
  }

  std::size_t size() const { return ids_.size(); }

  /// [CLS], the pieces of the text, [SEP]; at most `longest` ids, of which the pieces give way.
  std::vector<int> operator()(std::string_view text, std::size_t longest = 512) const {
    std::vector<int> ids{begin_};
    for (const std::u32string& word : words(text)) append_pieces(ids, word);
    if (ids.size() + 1 > longest) ids.resize(longest < 2 ? 1 : longest - 1);
    ids.push_back(end_);
    return ids;
  }

  /// The text in small letters without accents, cut at spaces, around punctuation and around
  /// Chinese characters.
  static std::vector<std::u32string> words(std::string_view text) {
    std::vector<std::u32string> result;
    std::u32string word, plain;
    const auto finish = [&] {
      if (!word.empty()) result.push_back(std::exchange(word, {}));
    };
    for (std::size_t at = 0; at < text.size();) {
      const char32_t c = unicode::next(text, at);
      if (c != U'\t' && c != U'\n' && c != U'\r' && (c == U'\uFFFD' || unicode::is_control(c))) {
        continue;
      }
      if (unicode::is_space(c)) {
        finish();
        continue;
      }
      plain.clear();
      unicode::append_base(plain, c);
      const bool alone = is_chinese(c);
      if (alone) finish();
      for (const char32_t base : plain) {
        const bool cut = is_punctuation(base);
        if (cut) finish();
        word += unicode::lower(base);
        if (cut) finish();
      }
      if (alone) finish();
    }
    finish();
    return result;
  }

 private:
  int special(const char* token) const {
    const auto found = ids_.find(std::string_view(token));
    if (found != ids_.end()) return found->second;
    throw std::invalid_argument("the vocabulary of " + std::to_string(ids_.size()) +
                                " tokens has no " + token + "; is it cut off?");
  }

  /// Every sign of ASCII that is neither a letter nor a digit counts.
  static bool is_punctuation(char32_t c) {
    return unicode::is_punctuation(c) ||
           (c > 0x20 && c < 0x7F && !unicode::is_letter(c) && !unicode::is_number(c));
  }
  static bool is_chinese(char32_t c) {
    static constexpr unicode::Range ideographs[] = {{0x3400, 0x4DBF},   {0x4E00, 0x9FFF},
                                                    {0xF900, 0xFAFF},   {0x20000, 0x2A6DF},
                                                    {0x2A700, 0x2CEAF}, {0x2F800, 0x2FA1F}};
    return unicode::within(ideographs, c);
  }

  void append_pieces(std::vector<int>& ids, const std::u32string& word) const {
    constexpr std::size_t longest_word = 100;
    if (word.size() > longest_word) return ids.push_back(unknown_);
    const std::size_t before = ids.size();
    for (std::size_t at = 0; at < word.size();) {
      std::size_t length = word.size() - at;
      auto found = ids_.end();
      for (; length > 0; --length) {
        found = ids_.find((at > 0 ? "##" : "") +
                          unicode::encode(std::u32string_view(word).substr(at, length)));
        if (found != ids_.end()) break;
      }
      if (length == 0) {  // one piece that is not there makes the word unknown
        ids.resize(before);
        return ids.push_back(unknown_);
      }
      ids.push_back(found->second);
      at += length;
    }
  }

  TokenIds ids_;
  int unknown_ = 0, begin_ = 0, end_ = 0;
};
