// A pretrained model reads sentences: those of similar meaning lie close together, whatever their
// words.

#include <chrono>
#include <cstdio>
#include <exception>
#include <iostream>
#include <numeric>
#include <string>
#include <thread>
#include <vector>
#include <unsupported/Eigen/CXX11/ThreadPool>
#include <heed/heatmap.hpp>
#include <heed/heed.hpp>

#include "mini_lm.hpp"
#include "word_piece.hpp"

namespace {

const std::vector<std::string> kSentences{
    "A man is playing a guitar on the street.",
    "Somebody makes music for the people passing by.",
    "The orchestra rehearses a symphony by Brahms.",
    "She sings in a choir every Tuesday.",
    "Add two eggs and a pinch of salt to the flour.",
    "Let the dough rest for an hour before baking.",
    "The soup needs more pepper.",
    "This restaurant serves excellent noodles.",
    "The central bank raised interest rates again.",
    "Shares fell after the company missed its targets.",
    "Inflation makes groceries more expensive.",
    "He put his savings into government bonds.",
    "The striker scored twice in the second half.",
    "Our team lost the final on penalties.",
    "She ran the marathon in under three hours.",
    "The referee showed a yellow card.",
    "A cold front brings rain and strong winds.",
    "It will be sunny, with temperatures up to thirty degrees.",
    "The storm tore the roof off the barn.",
    "Snow has closed the pass over the mountains.",
    "The telescope found water on a distant planet.",
    "Astronauts repaired the antenna outside the station.",
    "A comet passes the sun every seventy-six years.",
    "The probe sent pictures of Saturn's rings.",
    "The cat sleeps on the warm windowsill.",
    "Two dogs chase a ball across the meadow.",
    "Wolves have returned to the forests.",
    "The vet gave our kitten a vaccination.",
    "The program crashes when the file is empty.",
    "A compiler turns source code into machine instructions.",
    "Please restart your computer to install the updates.",
    "The database stores millions of records.",
};

const std::vector<std::string> kQueries{
    "What should I cook tonight?",       "My pet is ill.",
    "Will I need an umbrella tomorrow?", "The economy is in trouble.",
    "I found a bug in the software.",    "Life beyond the Earth",
};

}  // namespace

int main(int argc, char** argv) try {
  const std::string pictures = argc > 1 ? argv[1] : ".";
  if (!pretrained::available({"sentences.safetensors", "sentences.txt"})) return 0;
  const WordPiece tokenizer(read_lines(pretrained::path("sentences.txt")));
  const MiniLm model(heed::SafeTensors(pretrained::path("sentences.safetensors")));
  Eigen::ThreadPool pool(static_cast<int>(std::thread::hardware_concurrency()));

  const auto embed = [&](const std::vector<std::string>& texts) {
    std::vector<MiniLm::Ids> ids;
    for (const std::string& text : texts) ids.push_back(tokenizer(text, MiniLm::kLongest));
    return model.embed(ids, {.pool = &pool});
  };
  embed(kSentences);
  const auto start = std::chrono::steady_clock::now();
  const heed::Matrix<float> sentences = embed(kSentences);
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  std::printf("%td sentences in %.0f ms\n", sentences.rows(), 1000 * time.count());

  const heed::Matrix<float> queries = embed(kQueries);
  const heed::Matrix<float> answers = queries * sentences.transpose();
  for (heed::Index q = 0; q < answers.rows(); ++q) {
    std::printf("%s\n", kQueries[static_cast<std::size_t>(q)].c_str());
    heed::Vector<float> left = answers.row(q);
    for (int place = 0; place < 3; ++place) {
      heed::Index best = 0;
      const float similarity = left.maxCoeff(&best);
      std::printf("  %.2f  %s\n", similarity, kSentences[static_cast<std::size_t>(best)].c_str());
      left(best) = -1;
    }
  }

  heed::HeatmapOptions options;
  options.title = "How similar the model finds sentences";
  options.x_label = options.y_label = "";
  options.row_names = kSentences;
  options.column_names.assign(kSentences.size(), "");
  for (std::size_t n = 0; n < kSentences.size(); ++n)
    options.column_names[n] = std::to_string(n + 1);
  for (std::size_t n = 0; n < kSentences.size(); ++n) {
    options.row_names[n] += "  " + std::to_string(n + 1);
  }
  options.low = 0;
  options.cell_size = 18;
  heed::write_svg(
      pictures + "/11_similarities.svg",
      heed::heatmap_svg(heed::Matrix<float>(sentences * sentences.transpose()), options));
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
