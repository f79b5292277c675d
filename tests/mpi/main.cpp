// Runs the tests on every rank of MPI_COMM_WORLD: mpirun -n 4 heed_mpi_test. Rank 0 reports; what
// fails on another rank is printed by that one, and fails the run on all.

#include <mpi.h>
#include <iostream>
#include <gtest/gtest.h>

namespace {

/// Prints failures alone, with the rank.
class Failures : public ::testing::EmptyTestEventListener {
 public:
  explicit Failures(int rank) : rank_(rank) {}
  void OnTestPartResult(const ::testing::TestPartResult& part) override {
    if (!part.failed()) return;
    std::cerr << "rank " << rank_ << ": " << (part.file_name() ? part.file_name() : "") << ':'
              << part.line_number() << ": " << part.message() << std::endl;
  }

 private:
  int rank_;
};

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  ::testing::InitGoogleTest(&argc, argv);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank != 0) {
    auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new Failures(rank));
  }
  const int own = RUN_ALL_TESTS();
  int all = 0;
  MPI_Allreduce(&own, &all, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  MPI_Finalize();
  return all;
}
