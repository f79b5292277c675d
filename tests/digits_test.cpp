#include "../examples/digits.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

namespace heed::test {
namespace {

/// 64 pixels `pixel` and a label.
std::string line(const std::string& pixel, const std::string& label) {
  std::string result;
  for (int i = 0; i < 64; ++i) result += pixel + ",";
  return result + label + "\n";
}

class DigitsFile : public ::testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }

  Digits read(const std::string& content, Index count) {
    std::ofstream(path_, std::ios::binary) << content;
    return read_digits(path_, count);
  }

  /// What follows the path in the message.
  std::string message(const std::string& content, Index count = 2) {
    try {
      read(content, count);
    } catch (const std::runtime_error& error) {
      const std::string what = error.what(), path = path_.string();
      return what.rfind(path, 0) == 0 ? what.substr(path.size()) : "no path: " + what;
    }
    return "accepted";
  }

  const std::filesystem::path path_ =
      std::filesystem::temp_directory_path() /
      (std::string("heed_digits_") +
       ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".csv");
};

TEST_F(DigitsFile, IsRead) {
  std::string first = line("0", "7");
  first.replace(0, 3, "16,4");  // "0,0" becomes "16,4"
  for (const std::string& second :
       {line("8", "0"), line("8", "0").substr(0, 129), line("8", "0").substr(0, 129) + "\r\n"}) {
    const Digits digits = read(first + second, 2);
    ASSERT_EQ(digits.images.rows(), 2);
    EXPECT_EQ(digits.images(0, 0), 1.0f);
    EXPECT_EQ(digits.images(0, 1), 0.25f);
    EXPECT_EQ(digits.images(0, 63), 0.0f);
    EXPECT_EQ(digits.images(1, 63), 0.5f);
    EXPECT_EQ(digits.labels, (std::vector<int>{7, 0}));
  }
}

TEST_F(DigitsFile, IsRefusedWithFileAndLine) {
  const std::string good = line("3", "5");
  const auto second = [&](const std::string& bad) { return message(good + bad); };
  EXPECT_EQ(second(line("17", "5")), ":2: number 1 is not an integer from 0 to 16");
  EXPECT_EQ(second(line("-1", "5")), ":2: number 1 is not an integer from 0 to 16");
  EXPECT_EQ(second(line("-0", "5")), ":2: number 1 is not an integer from 0 to 16");
  EXPECT_EQ(second(line("x", "5")), ":2: number 1 is not an integer from 0 to 16");
  EXPECT_EQ(second(line("", "5")), ":2: number 1 is not an integer from 0 to 16");
  EXPECT_EQ(second(line(" 3", "5")), ":2: number 1 is not an integer from 0 to 16");
  EXPECT_EQ(second(line("99999999999", "5")), ":2: number 1 is not an integer from 0 to 16");
  EXPECT_EQ(second(line("1.5", "5")), ":2: expected a comma after number 1 of 65");
  EXPECT_EQ(second(line("3", "10")), ":2: number 65 is not an integer from 0 to 9");
  EXPECT_EQ(second(line("3", "")), ":2: number 65 is not an integer from 0 to 9");
  EXPECT_EQ(second(line("3", "5,")), ":2: text after the label");
  EXPECT_EQ(second("\n"), ":2: number 1 is not an integer from 0 to 16");
  EXPECT_EQ(second("1,2,3\n"), ":2: expected a comma after number 3 of 65");
  EXPECT_EQ(message(good), ":1: the file ends here, but should have 2 lines");
  EXPECT_EQ(message(""), ":0: the file ends here, but should have 2 lines");
  EXPECT_EQ(message(good + good + good), ":3: more than 2 lines");
  EXPECT_EQ(message(good + good + "\n"), ":3: more than 2 lines");
}

TEST_F(DigitsFile, ThatIsMissingIsNamed) {
  try {
    read_digits(path_);
    FAIL() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_EQ(error.what(), path_.string() + ": cannot be opened");
  }
}

TEST(Digits, OfTheExamplesAreAllThere) {
  char program[] = "program";
  char* arguments[] = {program};
  const Digits digits = read_digits(digits_path(1, arguments));
  EXPECT_EQ(digits.images.rows(), 1797);
  EXPECT_EQ(digits.labels.size(), 1797u);
  EXPECT_EQ(digits.labels[0], 0);
  EXPECT_EQ(digits.images(0, 3), 13.0f / 16);
}

// Labels 7, 0 and 5; votes for 7, 0 and 4. From image 1 on, votes for 0 and 5 are right.
TEST(Digits, AreCounted) {
  const Digits digits{Matrix<float>(), {7, 0, 5}};
  const Matrix<float> labels = one_hot(digits, 3);
  EXPECT_EQ(labels.sum(), 3.0f);
  EXPECT_TRUE(labels(0, 7) == 1 && labels(1, 0) == 1 && labels(2, 5) == 1);
  Matrix<float> votes = .5f * labels;
  votes(2, 4) = .6f;
  EXPECT_NEAR(accuracy(votes, digits, 0), 200.0 / 3, 1e-12);
  EXPECT_EQ(accuracy(labels.bottomRows(2), digits, 1), 100.0);
}

}  // namespace
}  // namespace heed::test
