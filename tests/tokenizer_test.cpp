#include <gtest/gtest.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "../examples/byte_pair.hpp"
#include "../examples/model_files.hpp"
#include "../examples/word_piece.hpp"
#include "support.hpp"

namespace heed::test {
namespace {

using Ids = std::vector<int>;

/// A file of tests/data.
std::string data_path(const std::string& name) {
  return (std::filesystem::path(__FILE__).parent_path() / "data" / name).string();
}

/// Lists of ids that tests/data/make_sentences.py wrote with the package tokenizers.
std::vector<Ids> read_ids(const std::string& name) {
  std::vector<Ids> result;
  for (const std::string& line : read_lines(data_path(name))) {
    std::istringstream numbers(line);
    Ids ids;
    for (int id = 0; numbers >> id;) ids.push_back(id);
    result.push_back(ids);
  }
  return result;
}

template <class Tokenizer>
void expect_ids(const Tokenizer& tokenizer, const std::string& name) {
  const std::vector<std::string> sentences = read_lines(data_path("sentences.txt"));
  const std::vector<Ids> ids = read_ids(name);
  ASSERT_EQ(sentences.size(), 200U);
  ASSERT_EQ(ids.size(), sentences.size());
  for (std::size_t n = 0; n < ids.size(); ++n)
    EXPECT_EQ(tokenizer(sentences[n]), ids[n]) << sentences[n];
}

std::string scratch_path() {
  const auto* const test = ::testing::UnitTest::GetInstance()->current_test_info();
  return ::testing::TempDir() + "heed_" + test->test_suite_name() + test->name() + ".txt";
}

void write_text(const std::string& path, std::string_view text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
}

// ---------------------------------------------------------------- words and their pieces

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> result;
  for (const auto& word : WordPiece::words(text)) result.push_back(unicode::encode(word));
  return result;
}

using Words = std::vector<std::string>;

TEST(WordPiece, CutsTextIntoPlainWords) {
  EXPECT_EQ(words_of(" The  cat,\tsat!\n"), (Words{"the", "cat", ",", "sat", "!"}));
  EXPECT_EQ(words_of("don't $5.00"), (Words{"don", "'", "t", "$", "5", ".", "00"}));
  EXPECT_EQ(words_of("Àé ñÖ Ångström"), (Words{"ae", "no", "angstrom"}));
  EXPECT_EQ(words_of("e\xCC\x81t\xCC\x81"), (Words{"et"}));  // marks on their own
  EXPECT_EQ(words_of("中文abc字"), (Words{"中", "文", "abc", "字"}));
  EXPECT_EQ(words_of("ΑΘΉΝΑ Ёлка ĐẸP STRASSE ẞ"), (Words{"αθηνα", "елка", "đep", "strasse", "ß"}));
  EXPECT_EQ(words_of("が パ"), (Words{"か", "ハ"}));
  EXPECT_EQ(words_of("a\xE2\x80\x8B"
                     "b\xC2\xA0"
                     "c\xEF\xBF\xBD"),
            (Words{"ab", "c"}));
  EXPECT_EQ(words_of("\xFFx\xC3"), (Words{"x"}));  // what is not UTF-8 is left out
  EXPECT_EQ(words_of("「a」—b…"), (Words{"「", "a", "」", "—", "b", "…"}));
  // 한 = 18 * 588 + 0 * 28 + 4 behind U+AC00: its letters are U+1112, U+1161 and U+11AB.
  EXPECT_EQ(words_of("한"), (Words{"\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB"}));
  EXPECT_TRUE(words_of("").empty());
}

TEST(WordPiece, TakesTheLongestPieces) {
  const WordPiece tokenizer({"[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "##a", "##ffable",
                             "un##", "able", "aff", "é"});
  // Greedy: "##aff" is longer than "##a", so that "##ffable" does not come up.
  EXPECT_EQ(tokenizer("unaffable"), (Ids{1, 3, 4, 5, 2}));
  EXPECT_EQ(tokenizer("able un"), (Ids{1, 9, 3, 2}));
  EXPECT_EQ(tokenizer("unaffably able"), (Ids{1, 0, 9, 2}));  // "##bly" is not there
  EXPECT_EQ(tokenizer(""), (Ids{1, 2}));
  EXPECT_EQ(tokenizer("able able able able", 4), (Ids{1, 9, 9, 2}));
  EXPECT_EQ(tokenizer(std::string(100, 'x') + " " + std::string(101, 'x')), (Ids{1, 0, 0, 2}));
}

TEST(WordPiece, GivesTheIdsOfTheReference) {
  expect_ids(WordPiece(read_lines(data_path("word_piece.txt"))), "word_piece.ids");
}

TEST(WordPiece, GivesTheIdsOfTheReferenceOnTheWholeVocabulary) {
  const std::string path = pretrained::path("sentences.txt");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  const WordPiece tokenizer(read_lines(path));
  EXPECT_EQ(tokenizer.size(), 30522U);
  expect_ids(tokenizer, "sentences.word_piece");
}

TEST(WordPiece, RefusesAVocabularyThatIsCut) {
  const auto tokens = read_lines(data_path("word_piece.txt"));
  EXPECT_TRUE(refuses([&] { WordPiece(std::vector(tokens.begin(), tokens.begin() + 3)); },
                      {"of 3 tokens", "[SEP]", "cut off"}));
  EXPECT_TRUE(refuses([] { WordPiece(std::vector<std::string>()); }, {"of 0 tokens"}));
  EXPECT_TRUE(refuses([] { WordPiece({"[UNK]", "a", "a"}); }, {"'a' twice"}));
  const std::string path = scratch_path();
  write_text(path, "[UNK]\n[CLS]\n[SE");
  EXPECT_TRUE(refuses([&] { read_lines(path); }, {path, "cut off"}));
  EXPECT_THROW(read_lines(path + ".missing"), std::runtime_error);
}

// ---------------------------------------------------------------- pairs of bytes

std::vector<std::string> byte_words_of(std::string_view text) {
  std::vector<std::string> result;
  for (const auto& word : BytePair::words(text)) result.push_back(unicode::encode(word));
  return result;
}

TEST(BytePair, CutsTextIntoWordsWithTheirSpaces) {
  EXPECT_EQ(byte_words_of("Hello world"), (Words{"Hello", " world"}));
  EXPECT_EQ(byte_words_of("don't we'll 'sad"), (Words{"don", "'t", " we", "'ll", " '", "sad"}));
  EXPECT_EQ(byte_words_of("'sad"), (Words{"'s", "ad"}));
  EXPECT_EQ(byte_words_of("a  b   "), (Words{"a", " ", " b", "   "}));
  EXPECT_EQ(byte_words_of("a\n\n b"), (Words{"a", "\n\n", " b"}));
  EXPECT_EQ(byte_words_of("a\nb"), (Words{"a", "\n", "b"}));
  EXPECT_EQ(byte_words_of("x 12  3"), (Words{"x", " ", "1", "2", "  ", "3"}));
  EXPECT_EQ(byte_words_of("x=+1 !?"), (Words{"x", "=+", "1", " !?"}));
  EXPECT_EQ(byte_words_of("été Ж中"), (Words{"été", " Ж中"}));
  EXPECT_TRUE(byte_words_of("").empty());
}

/// The least vocabulary: letters, merges, a special token.
constexpr const char* kSmall =
    "tokens 9\n<e>\na\nb\nc\n\xC4\xA0\nab\nabc\n\xC4\xA0"
    "ab\nbc\nmerges 4\nb c\na b\nab c\n\xC4\xA0 ab\nspecial 1\n<e>\n";

TEST(BytePair, MergesInTheOrderOfTheList) {
  const std::string path = scratch_path();
  write_text(path, kSmall);
  const BytePair tokenizer(path);
  EXPECT_EQ(tokenizer.size(), 9U);
  // "b c" comes before "a b", so that "abc" is a and bc, which nothing joins.
  EXPECT_EQ(tokenizer("abc"), (Ids{1, 8}));
  EXPECT_EQ(tokenizer("ab ab"), (Ids{5, 7}));
  EXPECT_EQ(tokenizer("aab"), (Ids{1, 5}));
  EXPECT_EQ(tokenizer("ab<e>a<e"), (Ids{5, 0, 1}));  // neither < nor e is in the vocabulary
  EXPECT_EQ(tokenizer.decode(Ids{5, 7, 0}), "ab ab<e>");
  EXPECT_EQ(tokenizer.id("abc"), 6);
  EXPECT_TRUE(refuses([&] { tokenizer.id("xyz"); }, {"'xyz'"}));
  EXPECT_TRUE(refuses([&] { tokenizer.decode(9); }, {"9"}));
  EXPECT_TRUE(refuses([&] { tokenizer.decode(-1); }, {"-1"}));
}

TEST(BytePair, GivesTheIdsOfTheReference) {
  const BytePair tokenizer(data_path("byte_pair.txt"));
  expect_ids(tokenizer, "byte_pair.ids");
}

TEST(BytePair, GivesTheIdsOfTheReferenceOnTheWholeVocabulary) {
  const std::string path = pretrained::path("language.txt");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  const BytePair tokenizer(path);
  EXPECT_EQ(tokenizer.size(), 49152U);
  expect_ids(tokenizer, "sentences.byte_pair");
  for (const std::string& sentence : read_lines(data_path("sentences.txt"))) {
    EXPECT_EQ(tokenizer.decode(tokenizer(sentence)), sentence);
  }
}

TEST(BytePair, RefusesAVocabularyThatIsCut) {
  const std::string path = scratch_path();
  const std::string whole = kSmall;
  for (std::size_t size = 0; size < whole.size(); ++size) {
    write_text(path, std::string_view(whole).substr(0, size));
    EXPECT_TRUE(refuses([&] { const BytePair tokenizer(path); }, {path})) << size;
  }
  const auto expect_refusal = [&](const std::string& text,
                                  std::initializer_list<std::string> parts) {
    write_text(path, text);
    EXPECT_TRUE(refuses([&] { const BytePair tokenizer(path); }, parts));
  };
  expect_refusal("tokens 99999999999999999999\n", {"line 1", "tokens"});
  expect_refusal("tokens 99999999\na\n", {"99999999", "cut off"});
  expect_refusal("tokens -1\na\n", {"line 1"});
  expect_refusal("tokens 2\na\na\n", {"'a'", "twice"});
  expect_refusal("tokens 2\na\nb\nmerges 1\na b\n", {"'a b'"});
  expect_refusal("tokens 2\na\nb\nmerges 1\nab\n", {"'ab'"});
  expect_refusal("tokens 1\na\nmerges 0\nspecial 1\n<b>\n", {"'<b>'"});
  expect_refusal(whole + "more\n", {"behind"});
}

}  // namespace
}  // namespace heed::test
