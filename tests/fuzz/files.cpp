#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "../../examples/byte_pair.hpp"
#include "../../examples/word_piece.hpp"
#include "fuzz/draw.hpp"
#include "heed/safetensors.hpp"

namespace heed::fuzz {
namespace {

/// Bytes of the input, changed at random from what they were.
std::string mutated(Draw& draw, std::string text) {
  for (Index n = draw.integer(0, 3); n-- > 0 && !text.empty();) {
    const auto at = static_cast<std::size_t>(draw.word()) % text.size();
    const auto byte = static_cast<char>(draw.integer(0, 255));
    switch (draw.integer(0, 3)) {
      case 0:
        text[at] = byte;
        break;
      case 1:
        text.insert(at, 1, byte);
        break;
      case 2:
        text.erase(at, static_cast<std::size_t>(draw.integer(1, 5)));
        break;
      default:
        text.insert(at, draw.one_of<const char*>({"9223372036854775807", "18446744073709551616",
                                                  "-1", "1e9", "[", "{", "\"", "\\u0000", "null",
                                                  "0", ",\"__metadata__\":{\"a\":\"b\"}"}));
    }
  }
  return text;
}

struct WrittenTensor {
  std::string name, type;
  std::size_t size = 0;
  std::vector<Index> shape;
};

void read_tensors(Draw& draw) {
  std::vector<WrittenTensor> tensors;
  std::string json = "{", data;
  for (Index n = draw.integer(0, 4); n-- > 0;) {
    WrittenTensor t;
    t.name = "t" + std::to_string(n);
    const auto type = draw.integer(0, 4);
    t.type = std::vector<std::string>{"F32", "F64", "BF16", "I8", "BOOL"}[std::size_t(type)];
    t.size = std::vector<std::size_t>{4, 8, 2, 1, 1}[std::size_t(type)];
    std::size_t bytes = t.size;
    for (Index axis = draw.integer(0, 4); axis-- > 0;) {
      t.shape.push_back(draw.integer(0, 5));
      bytes *= static_cast<std::size_t>(t.shape.back());
    }
    json +=
        (json.size() > 1 ? ",\"" : "\"") + t.name + R"(":{"dtype":")" + t.type + R"(","shape":[)";
    for (std::size_t a = 0; a < t.shape.size(); ++a) {
      json += (a ? "," : "") + std::to_string(t.shape[a]);
    }
    json += "],\"data_offsets\":[" + std::to_string(data.size()) + "," +
            std::to_string(data.size() + bytes) + "]}";
    for (std::size_t b = 0; b < bytes; ++b) data += static_cast<char>(draw.word() & 1);
    tensors.push_back(t);
  }
  json += "}";
  const std::string good = json;
  if (draw.chance(70)) json = mutated(draw, json);
  std::string bytes;
  for (int shift = 0; shift < 64; shift += 8) {
    bytes += static_cast<char>(json.size() >> shift & 0xFF);
  }
  bytes += json + data;
  const bool whole = json == good && draw.chance(80);
  if (!whole) bytes = mutated(draw, bytes);
  if (!whole && draw.chance(20)) {
    bytes.resize(static_cast<std::size_t>(draw.word()) % (bytes.size() + 1));
  }
  about() = json;

  const auto path = std::filesystem::temp_directory_path() /
                    ("heed_fuzz_" + std::to_string(::getpid()) + ".safetensors");
  std::ofstream(path, std::ios::binary) << bytes;
  try {
    const SafeTensors file(path);
    std::size_t numbers = 0;
    for (const auto& name : file.names()) {
      const auto shape = file.shape(name);
      const std::string_view all = file.bytes(name);
      for (const char c : all) numbers += static_cast<std::size_t>(c == 1);  // all can be read
      try {
        const auto x = file.view<float, 2>(name);
        for (Index i = 0; i < x.shape[0]; ++i) {
          for (Index j = 0; j < x.shape[1]; ++j) numbers += static_cast<std::size_t>(x(i, j) == 1);
        }
        if (file.type(name) != "F32" || shape.size() != 2) found(name, " has another type");
        if (static_cast<Index>(all.size()) != 4 * x.shape[0] * x.shape[1]) found(name, ": bytes");
      } catch (const std::invalid_argument&) {
        // Also where the header's length leaves no floats where a float can be read.
      }
    }
    if (numbers > 2 * bytes.size()) found("more numbers than bytes");
    if (whole) {
      if (file.names().size() != tensors.size()) found("tensors are missing");
      for (const auto& t : tensors) {
        if (file.shape(t.name) != t.shape || file.type(t.name) != t.type) found(t.name);
      }
    }
  } catch (const Finding&) {
    throw;
  } catch (const std::invalid_argument& refusal) {
    if (whole) found("a good file was refused: ", refusal.what());
  }
}

std::string text_of(Draw& draw, Index most) {
  std::string text;
  for (Index n = draw.integer(0, most); n-- > 0;) {
    text += draw.chance(70) ? draw.one_of({"a", "b", "un", " ", "##", "\xC3\xA9", "1", "'s", "\n"})
                            : std::string(1, static_cast<char>(draw.integer(0, 255)));
  }
  return text;
}

void read_words(Draw& draw) {
  std::vector<std::string> tokens{"[UNK]", "[CLS]", "[SEP]", "a", "b", "##b", "un", "##un"};
  if (draw.chance(20)) tokens.erase(tokens.begin() + draw.integer(0, 7));
  for (Index n = draw.integer(0, 6); n-- > 0;) tokens.push_back(text_of(draw, 3));
  const std::string text = text_of(draw, 40);
  try {
    const WordPiece tokenizer(tokens);
    const auto most = static_cast<std::size_t>(draw.integer(2, 60));
    const auto ids = tokenizer(text, most);
    if (ids.size() < 2 || ids.size() > most) found("number of ids: ", ids.size());
    for (const int id : ids) {
      if (id < 0 || static_cast<std::size_t>(id) >= tokens.size()) found("the id ", id);
    }
  } catch (const std::invalid_argument&) {
  }
}

void read_pairs(Draw& draw) {
  // All single bytes are tokens, spelled as GPT-2 does, so that decoding is the inverse.
  std::vector<std::string> tokens;
  for (unsigned byte = 0, letter = 0x100; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    tokens.push_back(unicode::encode(std::u32string(1, printable ? byte : letter++)));
  }
  const std::size_t bytes = tokens.size();
  std::vector<std::string> merges;
  for (Index n = draw.integer(0, 12); n-- > 0;) {
    const auto pick = [&] {
      return draw.chance(60) ? tokens[static_cast<std::size_t>(draw.integer('a', 'f'))]
                             : tokens[static_cast<std::size_t>(draw.word()) % tokens.size()];
    };
    const std::string left = pick(), right = pick();
    if (std::find(tokens.begin(), tokens.end(), left + right) != tokens.end()) continue;
    tokens.push_back(left + right);
    merges.push_back(left + " " + right);
  }
  std::string text = "tokens " + std::to_string(tokens.size()) + "\n";
  for (const auto& t : tokens) text += t + "\n";
  text += "merges " + std::to_string(merges.size()) + "\n";
  for (const auto& m : merges) text += m + "\n";
  text += "special 0\n";
  const bool whole = draw.chance(50);
  if (!whole) text = mutated(draw, text);
  const auto path = std::filesystem::temp_directory_path() /
                    ("heed_fuzz_" + std::to_string(::getpid()) + ".pairs");
  std::ofstream(path, std::ios::binary) << text;
  try {
    const BytePair tokenizer(path.string());
    std::string words;
    for (Index n = draw.integer(0, 40); n-- > 0;) {
      words += static_cast<char>(draw.chance(60) ? draw.integer('a', 'f') : draw.integer(0, 255));
    }
    const auto ids = tokenizer(words);
    if (whole && tokenizer.size() < bytes) found("tokens are missing");
    tokenizer.decode(ids);
  } catch (const Finding&) {
    throw;
  } catch (const std::invalid_argument& refusal) {
    if (whole) found("a good vocabulary was refused: ", refusal.what());
  }
}

}  // namespace

/// Files of others open, or are refused with a message.
void read_files(Draw& draw) {
  about().clear();
  switch (draw.integer(0, 9)) {
    case 0:
      return read_pairs(draw);
    case 1:
    case 2:
      return read_words(draw);
    default:
      return read_tensors(draw);
  }
}

}  // namespace heed::fuzz
