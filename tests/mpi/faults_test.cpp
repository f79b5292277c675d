// What goes wrong on one rank reaches all of them, with its number, and leaves nothing behind.

#include <stdexcept>
#include <string>
#include <utility>

#include "support.hpp"

namespace {

/// Calls of one of MPI's functions, of which one may fail: that many calls from now.
struct Calls {
  int made = 0, until_failure = -1;

  bool next_fails() {
    ++made;
    return until_failure-- == 0;
  }
};
Calls sends, receives, ends;  // of messages, which both functions below find

}  // namespace

// MPI's functions have a second name, under which a program that has its own of the first calls
// them.
int MPI_Isend(const void* from, int count, MPI_Datatype type, int to, int tag, MPI_Comm ranks,
              MPI_Request* request) {
  if (sends.next_fails()) return MPI_ERR_INTERN;
  return PMPI_Isend(from, count, type, to, tag, ranks, request);
}
int MPI_Irecv(void* to, int count, MPI_Datatype type, int from, int tag, MPI_Comm ranks,
              MPI_Request* request) {
  if (receives.next_fails()) return MPI_ERR_INTERN;
  return PMPI_Irecv(to, count, type, from, tag, ranks, request);
}
int MPI_Wait(MPI_Request* request, MPI_Status* status) {
  const int code = PMPI_Wait(request, status);
  return ends.next_fails() ? MPI_ERR_INTERN : code;
}
int MPI_Test(MPI_Request* request, int* done, MPI_Status* status) {
  const int code = PMPI_Test(request, done, status);
  return *done != 0 && ends.next_fails() ? MPI_ERR_INTERN : code;
}

namespace heed {
namespace {

using namespace test;

/// f throws an Error whose message has every part in it.
template <class Error>
::testing::AssertionResult throws(const auto& f, std::initializer_list<std::string> parts) {
  try {
    f();
  } catch (const Error& error) {
    const std::string message = error.what();
    for (const std::string& part : parts) {
      if (message.find(part) == std::string::npos) {
        return ::testing::AssertionFailure() << "no '" << part << "' in: " << message;
      }
    }
    return ::testing::AssertionSuccess();
  } catch (const std::exception& error) {
    return ::testing::AssertionFailure() << "another exception: " << error.what();
  }
  return ::testing::AssertionFailure() << "nothing was thrown";
}

class Faults : public ::testing::Test {
 protected:
  const int rank = world_rank(), ranks = world_size(), last = ranks - 1;
  const std::string name_of_last = "rank " + std::to_string(last);
  const Whole<float> whole{{.batch = 1, .heads = 2, .kv_heads = 1, .dim = 4, .width = 4}};
  const Pieces<float> own{whole, SequenceLayout::zigzag};
  MPI_Comm world = MPI_COMM_WORLD;
  SequenceLayout layout = SequenceLayout::zigzag;

  /// After a failure the next call is none the worse.
  void TearDown() override {
    const auto expected = attention(whole.query, whole.key, whole.value);
    const auto output = ring_attention(own.query, own.key, own.value, world, layout);
    EXPECT_TRUE(close(gather(output, world, layout), expected, 1e-6));
  }
};

TEST_F(Faults, ShapesThatDoNotFitOnOneRank) {
  // (1, 2, n, 4) and (1, 1, n, 3)
  const Tensor<float, 4> narrow(1, 1, own.key.dimension(2), 3);
  const auto& key = rank == last ? narrow : own.key;
  EXPECT_TRUE(refuses([&] { ring_attention(own.query, key, own.value, world, layout); },
                      {"heed::ring_attention", name_of_last, "4 and 3 features"}));
}

TEST_F(Faults, ShapesThatFitOnEachRankAndDiffer) {
  if (ranks == 1) return;
  Tensor<float, 4> more_keys(1, 1, own.key.dimension(2) + 2, 4);
  more_keys.setZero();
  const auto& key = rank == last ? more_keys : own.key;
  const auto& value = rank == last ? more_keys : own.value;
  EXPECT_TRUE(refuses([&] { ring_attention(own.query, key, value, world, layout); },
                      {"heed::ring_attention", name_of_last + " and rank 0", "keys of a rank",
                       std::to_string(96 / ranks + 2) + " and " + std::to_string(96 / ranks)}));
}

TEST_F(Faults, LayoutsSeedsAndFunctionsThatDiffer) {
  if (ranks == 1) return;
  EXPECT_TRUE(refuses(
      [&] {
        ring_attention(own.query, own.key, own.value, world,
                       rank == last ? SequenceLayout::contiguous : layout);
      },
      {name_of_last + " and rank 0", "the layout"}));
  EXPECT_TRUE(refuses(
      [&] {
        ring_attention(own.query, own.key, own.value, world, layout, scaled_dot_product(),
                       no_mask(), {.dropout = .5, .seed = rank == last ? 1u : 2u});
      },
      {name_of_last + " and rank 0", "the seed of the dropout"}));
  EXPECT_TRUE(refuses(
      [&] {
        if (rank == last) {
          ring_attention(own.query, own.key, own.value, world, layout);
        } else {
          ring_attention_forward(own.query, own.key, own.value, world, layout);
        }
      },
      {name_of_last + " and rank 0", "the function"}));
  const auto in_double = make<double, 4>(reference(own.query));
  EXPECT_TRUE(refuses(
      [&] {
        if (rank == last) {
          ring_attention(in_double, in_double, in_double, world, layout);
        } else {
          ring_attention(own.query, own.query, own.query, world, layout);
        }
      },
      {name_of_last + " and rank 0", "the number types"}));
}

TEST_F(Faults, RowsThatDoNotDivideIntoChunks) {
  const Matrix<float> odd = Matrix<float>::Zero(3, 2), even = Matrix<float>::Zero(4, 2);
  EXPECT_TRUE(refuses([&] { ring_attention(odd, even, even, world, layout); },
                      {"heed::ring_attention", "rank 0", "piece of query has 3 rows", "2 chunks"}));
  EXPECT_TRUE(refuses([&] { ring_attention(even, odd, odd, world, layout); },
                      {"piece of key has 3 rows", "2 chunks"}));
  EXPECT_TRUE(refuses([&] { gather(odd, world, layout); }, {"heed::gather", "3 rows"}));
  const Matrix<float> one_more = Matrix<float>::Zero(2 * ranks + 1, 2);
  EXPECT_TRUE(refuses([&] { shard(one_more, world, layout); },
                      {"heed::shard", std::to_string(2 * ranks + 1) + " rows",
                       std::to_string(2 * ranks) + " chunks"}));
}

TEST_F(Faults, PoliciesThatDoNotFitOnOneRank) {
  const std::vector<int> lens(rank == last ? 2 : 1, 5);
  EXPECT_TRUE(refuses(
      [&] {
        ring_attention(own.query, own.key, own.value, world, layout, scaled_dot_product(),
                       valid_lens(lens));
      },
      {name_of_last, "valid_lens has 2 rows"}));
  const Matrix<float> rows = Matrix<float>::Zero(own.query.dimension(2), rank == last ? 95 : 96);
  EXPECT_TRUE(refuses(
      [&] {
        ring_attention(own.query, own.key, own.value, world, layout,
                       scaled_dot_product() | bias(rows));
      },
      {name_of_last, "bias of shape", "keys"}));
}

TEST_F(Faults, AFunctionThatThrowsOnOneRank) {
  Vector<float> slopes = Vector<float>::Zero(2), d_slopes = Vector<float>::Constant(2, .5f);
  const auto score = scaled_dot_product() | alibi(slopes, d_slopes);
  const auto pass =
      ring_attention_forward(own.query, own.key, own.value, world, layout, score, no_mask());
  int calls = 0;
  const auto thrower = [&](bool something_else) {
    return mask_if([&, something_else](Index, Index, Index, Index) {
      if (rank == last && ++calls == 1000) {
        if (something_else) throw 7;
        throw std::out_of_range("the user's own");
      }
      return true;
    });
  };
  EXPECT_TRUE(throws<std::runtime_error>(
      [&] {
        ring_attention(own.query, own.key, own.value, world, layout, scaled_dot_product(),
                       thrower(false));
      },
      {"heed::ring_attention", name_of_last + " has failed", "the user's own"}));
  calls = 0;
  EXPECT_TRUE(throws<std::runtime_error>(
      [&] {
        ring_attention(own.query, own.key, own.value, world, layout, scaled_dot_product(),
                       thrower(true));
      },
      {name_of_last, "no std::exception"}));
  calls = 0;
  EXPECT_TRUE(throws<std::runtime_error>(
      [&] {
        ring_attention_backward(own.query, own.key, own.value, pass, own.grad, world, layout, score,
                                thrower(false));
      },
      {"heed::ring_attention_backward", name_of_last, "the user's own"}));
  // No rank has added to the gradient of a parameter.
  EXPECT_EQ(d_slopes(0), .5f);
  EXPECT_EQ(d_slopes(1), .5f);
}

TEST_F(Faults, PassesOfOtherInputs) {
  auto pass = ring_attention_forward(own.query, own.key, own.value, world, layout);
  if (rank == last) pass.output = Tensor<float, 4>(1, 2, 1, 4);
  EXPECT_TRUE(refuses(
      [&] {
        ring_attention_backward(own.query, own.key, own.value, pass, own.grad, world, layout);
      },
      {"heed::ring_attention_backward", name_of_last, "pass.output"}));
}

TEST_F(Faults, Communicators) {
  EXPECT_TRUE(refuses([&] { ring_attention(own.query, own.key, own.value, MPI_COMM_NULL, layout); },
                      {"heed::ring_attention", "MPI_COMM_NULL"}));
  // Calls on a communicator of one rank each, which is freed with what heed keeps there.
  MPI_Comm alone = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, rank, 0, &alone);
  const auto expected = attention(own.query, own.key, own.value, scaled_dot_product(), causal());
  for (int turn = 0; turn < 2; ++turn) {
    EXPECT_TRUE(
        identical(ring_attention(own.query, own.key, own.value, alone, SequenceLayout::contiguous,
                                 scaled_dot_product(), causal()),
                  expected));
  }
  MPI_Comm_free(&alone);
  EXPECT_EQ(alone, MPI_COMM_NULL);
}

/// Each message of the last rank's, to send and to receive, fails in its turn.
TEST_F(Faults, AMessageThatMpiFailsOnOneRank) {
  const auto pass = ring_attention_forward(own.query, own.key, own.value, world, layout);
  const auto run = [&](bool backward) {
    if (backward) {
      ring_attention_backward(own.query, own.key, own.value, pass, own.grad, world, layout);
    } else {
      ring_attention(own.query, own.key, own.value, world, layout);
    }
  };
  const std::pair<Calls*, const char*> kinds[] = {
      {&sends, "MPI_Isend failed"}, {&receives, "MPI_Irecv failed"}, {&ends, "a message failed"}};
  for (const bool backward : {false, true}) {
    for (const auto& [calls, message] : kinds) {
      calls->made = 0;
      run(backward);
      int all = calls->made;
      MPI_Bcast(&all, 1, MPI_INT, last, world);
      EXPECT_EQ(all > 0, ranks > 1);
      for (int n = 0; n < all; ++n) {
        if (rank == last) calls->until_failure = n;
        EXPECT_TRUE(throws<std::runtime_error>(
            [&] { run(backward); },
            {"heed::ring_attention", name_of_last + " has failed", message}));
      }
    }
  }
}

TEST_F(Faults, ErrorsOfMpi) {
  const detail::Communicator communicator("test", MPI_COMM_WORLD);
  detail::Traffic traffic(communicator);
  std::byte byte{};
  traffic.send(&byte, 1, ranks, 0);
  traffic.wait();
  EXPECT_TRUE(throws<std::runtime_error>([&] { traffic.check(); },
                                         {"heed::test", "MPI_Isend failed", "rank"}));
  EXPECT_TRUE(
      throws<std::runtime_error>([] { detail::check_mpi("test", "a message", MPI_ERR_TRUNCATE); },
                                 {"heed::test: a message failed", "truncated"}));
}

}  // namespace
}  // namespace heed
