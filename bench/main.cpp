// heed_bench: every operator against the FMA peak of the core, measured in the same process, and
// beside the obvious implementation with Eigen. Google Benchmark's flags apply
// (--benchmark_filter=attention/causal, --benchmark_format=json, ...); in the environment
// HEED_BENCH_ROUNDS=50 takes more rounds, and HEED_BENCH_CLOCK=cpu helps on a busy machine.

#include <fstream>
#include <iostream>
#include <map>
#include <string_view>

#include "support.hpp"

#ifdef HEED_BENCH_OPENBLAS
#include <cblas.h>
#endif

namespace heed_bench {
namespace {

bool any_failed = false;

int rounds() {
  const char* text = std::getenv("HEED_BENCH_ROUNDS");
  const int value = text == nullptr ? 30 : std::atoi(text);
  if (value < 1) {
    std::cerr << "heed_bench: HEED_BENCH_ROUNDS is not a number above 0: " << text << '\n';
    std::exit(1);
  }
  return value;
}

/// A function with as many calls as fill a slice of 1 to 2 ms: long against the clock's resolution,
/// short enough that some slices meet no interruption.
struct Timed {
  std::function<void()> run;
  int calls = 1;
  bool cpu;
  std::vector<double> seconds;  // a call, for each round

  Timed(std::function<void()> function, const Case& c)
      : run(std::move(function)), cpu(processor_time() && !c.threaded) {
    if (!run) return;
    while (slice() * calls < 1e-3) calls *= 2;
  }

  double slice() const {
    const Stopwatch watch{.cpu = cpu};
    for (int call = 0; call < calls; ++call) {
      run();
      benchmark::ClobberMemory();
    }
    return watch.seconds() / calls;
  }

  void measure() {
    if (!run) return;
    if (calls > 1) run();  // the caches are as the previous contender left them
    seconds.push_back(slice());
  }

  double best() const { return *std::min_element(seconds.begin(), seconds.end()); }

  double median() const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

/// What the goal asks for, what was reached where no other column says it, and whether it was.
std::string verdict(const Case& c, std::map<std::string, double> reached) {
  const Goal& goal = c.goal;
  std::string text;
  double value = 0;
  switch (goal.measure) {
    case Measure::none:
      return text;
    case Measure::peak:
      value = reached["of_peak"];
      text = format("%.2f", goal.value) + " peak";
      break;
    case Measure::eigen:
      value = reached["over_eigen"];
      text = format("%.3gx", goal.value) + " Eigen";
      break;
    case Measure::base:
      value = reached["over_base"];
      text = format("%.2f", goal.value) + " " + c.base_name + ": " + format("%.2f", value);
      break;
  }
  bool ok = value >= goal.value;
  for (const char* rival : {"over_eigen", "over_openblas"}) {
    if (goal.ahead && reached.contains(rival)) ok = ok && reached[rival] > 1;
  }
  return text + (ok ? "  ok" : "  MISSED");
}

void run(benchmark::State& state, const Case& c) {
  Timed heed(c.heed.run, c), eigen(c.eigen.run, c), openblas(c.openblas.run, c), base(c.base, c);
  double peak = 0;
  const auto round = [&] {
    peak = std::max(peak, c.peak());
    for (Timed* timed : {&heed, &base, &eigen, &openblas}) timed->measure();
  };
  // Short rounds are many: up to ten in the place of one, as long as they take 20 ms.
  const Stopwatch watch;
  round();
  const int repeats = static_cast<int>(std::clamp(20e-3 / watch.seconds(), 1.0, 10.0));
  for (auto _ : state) {
    for (int repeat = 0; repeat < repeats; ++repeat) round();
    state.SetIterationTime(heed.seconds.back());
  }
  std::map<std::string, double> reached;
  const double rate = c.flops / heed.best();
  reached["best_seconds"] = heed.best();
  reached["median_over_best"] = heed.median() / heed.best();
  reached["GFLOP/s"] = rate * 1e-9;
  reached["peak_GFLOP/s"] = peak * 1e-9;
  reached["of_peak"] = rate / peak;
  reached["max_error"] = c.heed.error;
  if (c.base) reached["over_base"] = base.best() / heed.best();
  if (c.eigen) {
    reached["eigen_of_peak"] = c.flops / eigen.best() / peak;
    reached["over_eigen"] = eigen.best() / heed.best();
  }
  if (c.openblas) {
    reached["openblas_of_peak"] = c.flops / openblas.best() / peak;
    reached["over_openblas"] = openblas.best() / heed.best();
  }
  for (const auto& [name, value] : reached) state.counters[name] = value;
  state.SetLabel(verdict(c, reached));
}

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::string eigen_version() {
#ifdef EIGEN_VERSION_STRING
  return EIGEN_VERSION_STRING;
#else
  return std::to_string(EIGEN_WORLD_VERSION) + '.' + std::to_string(EIGEN_MAJOR_VERSION) + '.' +
         std::to_string(EIGEN_MINOR_VERSION);
#endif
}

/// The peak in GFLOP/s, and how many multiply-adds that is in a cycle of the clock found beside it.
template <class Scalar>
std::string describe_peak(const char* name) {
  double peak = 0, clock = 0;
  for (int round = 0; round < rounds(); ++round) {
    peak = std::max(peak, fma_peak<Scalar>());
    clock = std::max(clock, clock_rate());
  }
  char text[160];
  std::snprintf(
      text, sizeof text,
      "FMA peak   %s: %.1f GFLOP/s = %.2f multiply-adds of %d lanes a cycle at %.2f GHz\n", name,
      peak * 1e-9, peak / clock / 2 / lanes<Scalar>, lanes<Scalar>, clock * 1e-9);
  return text;
}

class TableReporter : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override {
#ifdef __clang__
    const std::string compiler = "clang " __clang_version__;
#else
    const std::string compiler = "g++ " __VERSION__;
#endif
    std::ostream& out = GetOutputStream();
    out << "compiler   " << compiler << ", " << HEED_BENCH_FLAGS << '\n'
        << "processor  " << processor() << ", " << benchmark::CPUInfo::Get().num_cpus << " cores\n"
        << "Eigen      " << eigen_version() << ", " << Eigen::SimdInstructionSetsInUse() << '\n';
#ifdef HEED_BENCH_OPENBLAS
    out << "OpenBLAS   " << openblas_get_config() << '\n';
#endif
    out << describe_peak<float>("float") << describe_peak<double>("double")
        << "time       best of at least " << rounds() << " rounds ("
        << (processor_time() ? "processor time" : "wall clock")
        << "), +median: how much longer the median round took; one thread unless named\n"
        << "peak       FLOP/s over the best FMA peak of the same rounds; goal: 'ok' or 'MISSED'\n"
        << "error      the largest error against double over the largest result\n\n"
        << line({"benchmark", "time", "+median", "GFLOP/s", "peak", "Eigen", "over it", "OpenBLAS",
                 "over it", "error", "goal"})
        << std::flush;
    return true;
  }

  void ReportRuns(const std::vector<Run>& runs) override {
    std::ostream& out = GetOutputStream();
    for (const Run& run : runs) {
      if (run.run_type == Run::RT_Aggregate) continue;
      const std::string& name = run.run_name.function_name;
      const std::string section = name.substr(0, name.find('/', name.find('/') + 1));
      if (section != section_) out << '\n';
      section_ = section;
      const auto counter = [&](const char* key, const char* pattern, double scale = 1,
                               double offset = 0) {
        const auto found = run.counters.find(key);
        return found == run.counters.end() ? std::string()
                                           : format(pattern, found->second * scale + offset);
      };
      out << line({name, counter("best_seconds", "%.2f us", 1e6),
                   counter("median_over_best", "%+.1f %%", 100, -100), counter("GFLOP/s", "%.1f"),
                   counter("of_peak", "%.3f"), counter("eigen_of_peak", "%.3f"),
                   counter("over_eigen", "%.2fx"), counter("openblas_of_peak", "%.3f"),
                   counter("over_openblas", "%.2fx"), counter("max_error", "%.0e"),
                   run.report_label})
          << std::flush;
    }
  }

 private:
  static std::string line(const std::array<std::string, 11>& cells) {
    constexpr int widths[] = {-36, 14, 9, 9, 7, 7, 9, 9, 9, 7, -1};
    std::string result;
    for (std::size_t i = 0; i < cells.size(); ++i) {
      char text[128];
      std::snprintf(text, sizeof text, "%*s", widths[i], cells[i].c_str());
      if (i + 1 == cells.size()) result += "  ";
      result += text;
    }
    return result + '\n';
  }

  std::string section_;
};

}  // namespace

void add(const std::string& name, std::function<Case(const std::string& name)> make) {
  const auto body = [name, make = std::move(make)](benchmark::State& state) {
    try {
      run(state, make(name));
    } catch (const std::exception& error) {
      any_failed = true;
      std::cerr << "heed_bench: " << error.what() << '\n';
      state.SetLabel("FAILED: not timed");
      state.SkipWithError(error.what());
    }
  };
  benchmark::RegisterBenchmark(name.c_str(), body)->UseManualTime()->Iterations(rounds());
}

}  // namespace heed_bench

int main(int argc, char** argv) {
#ifdef HEED_BENCH_OPENBLAS
  openblas_set_num_threads(1);
#endif
  bool own_format = true;
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]).starts_with("--benchmark_format")) own_format = false;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  for (const auto add_all : heed_bench::Suite::all()) add_all();
  heed_bench::TableReporter table;
  benchmark::RunSpecifiedBenchmarks(own_format ? &table : nullptr);
  benchmark::Shutdown();
  return heed_bench::any_failed ? 1 : 0;
}
