// A pretrained language model answers, token by token, always with the likeliest: 13_language
// [directory of pictures] [question].

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <thread>
#include <vector>
#include <unsupported/Eigen/CXX11/ThreadPool>
#include <heed/heatmap.hpp>
#include <heed/heed.hpp>

#include "byte_pair.hpp"
#include "plot.hpp"
#include "smol_lm.hpp"

namespace {

struct Said {
  std::string text;
  double probability;
};

/// The reply, each token on the colour of how sure the model was of it.
void draw(const std::vector<Said>& reply, const std::string& question, const std::string& path) {
  constexpr double size = 14, line = 25, width = 860, margin = 20;
  struct Part {
    plot::Point place;
    double length, probability;
    std::string text;
  };
  std::vector<Part> parts;
  plot::Point at{margin, 62};
  const auto new_line = [&at] { at = {margin, at.y + line}; };
  for (const Said& token : reply) {
    const std::string whole = unicode::encode(unicode::decode(token.text));  // valid UTF-8
    for (std::size_t from = 0; from <= whole.size();) {
      const std::size_t end = std::min(whole.find('\n', from), whole.size());
      const std::string text = whole.substr(from, end - from);
      const double length = heed::detail::text_width(text, size);
      if (at.x + length > width - margin) new_line();
      if (!text.empty()) parts.push_back({at, length, token.probability, text});
      at.x += length;
      if (end < whole.size()) new_line();
      from = end + 1;
    }
  }
  plot::Picture picture(width, at.y + 56);
  picture.text({margin, 30}, heed::detail::xml_escape(unicode::encode(unicode::decode(question))),
               15, "start", "font-weight=\"bold\"");
  for (const Part& part : parts) {
    const auto [x, y] = part.place;
    const auto color = heed::detail::color_at(heed::paper_colors(), .4 * (1 - part.probability));
    picture.box({x, y - 16}, part.length, line - 3, heed::detail::hex(color));
    picture.text({x, y}, heed::detail::xml_escape(part.text), size, "start",
                 "font-family=\"monospace\" xml:space=\"preserve\" textLength=\"" +
                     std::to_string(part.length) + "\"");
  }
  picture.text({margin, at.y + 34}, "the darker, the less likely the token", 12, "start");
  picture.save(path);
}

}  // namespace

int main(int argc, char** argv) try {
  using Clock = std::chrono::steady_clock;
  const std::string pictures = argc > 1 ? argv[1] : ".";
  const std::string question = argc > 2 ? argv[2] : "Why do we have seasons?";
  constexpr std::size_t longest = 256;  // tokens of a reply
  if (!pretrained::available({"language.safetensors", "language.txt"})) return 0;
  const BytePair tokenizer(pretrained::path("language.txt"));
  const SmolLm model(heed::SafeTensors(pretrained::path("language.safetensors")));
  Eigen::ThreadPool pool(static_cast<int>(std::thread::hardware_concurrency()));
  const heed::AttentionOptions options{.pool = &pool};

  SmolLm::Ids ids = tokenizer(
      "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
      "Face<|im_end|>\n<|im_start|>user\n" +
      question + "<|im_end|>\n<|im_start|>assistant\n");
  const int end = tokenizer.id("<|im_end|>");
  std::printf("%s\n\n", question.c_str());

  auto caches = SmolLm::caches(static_cast<heed::Index>(ids.size() + longest));
  const auto start = Clock::now();
  heed::Matrix<float> logits = model.next(ids, caches, true, options);
  const std::chrono::duration<double> reading = Clock::now() - start;
  std::vector<Said> reply;
  std::size_t written = 0;
  while (written < longest) {
    heed::Index best = 0;
    const float most = logits.row(0).maxCoeff(&best);
    if (best == end) break;
    const int token = static_cast<int>(best);
    ++written;
    const std::string text = tokenizer.decode(token);
    if (!reply.empty() && (static_cast<unsigned char>(text[0]) & 0xC0) == 0x80) {
      reply.back().text += text;  // a letter goes on that the token before began
    } else {
      reply.push_back({text, 1 / double((logits.row(0).array() - most).exp().sum())});
    }
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
    logits = model.next({token}, caches, true, options);
  }
  const std::chrono::duration<double> writing = Clock::now() - start - reading;
  std::printf("\n\nread %zu tokens at %.0f a second, wrote %zu at %.0f a second\n", ids.size(),
              double(ids.size()) / reading.count(), written, double(written) / writing.count());
  draw(reply, question, pictures + "/13_reply.svg");
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
