// The `clary` command as a user meets it: what it prints, what it writes, how it fails.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "support/npy.h"
#include "support/problem.h"
#include "support/safetensors.h"

namespace clary::support {
namespace {

struct Ran {
  int code;
  std::string out, err;
};

std::string slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

class Command : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directory(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return folder_ + "/" + name; }

  Ran run(const std::string& arguments) const {
    const std::string line = std::string(CLARY_COMMAND) + " " + arguments + " >" + path("out") + " 2>" + path("err");
    const int status = std::system(line.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, slurp(path("out")), slurp(path("err"))};
  }

  nlohmann::json run_json(const std::string& arguments) const {
    const Ran ran = run(arguments);
    EXPECT_EQ(ran.code, 0) << ran.err;
    return nlohmann::json::parse(ran.out, nullptr, false);
  }

  // Wrong use: exit code 2, nothing on standard output, one line of reason that holds `reason`.
  void expect_wrong(const std::string& arguments, const std::string& reason) const {
    const Ran ran = run(arguments);
    EXPECT_EQ(ran.code, 2) << arguments;
    EXPECT_EQ(ran.out, "") << arguments;
    EXPECT_EQ(ran.err.rfind("clary: ", 0), 0u) << ran.err;
    EXPECT_NE(ran.err.find(reason), std::string::npos) << ran.err;
  }

  // Writes the inputs of a problem as q.npy, k.npy, v.npy and returns its tensors with the library's own answer.
  Tensors write_inputs(const Problem& problem) const {
    Tensors tensors = make_tensors(problem);
    write_npy(path("q.npy"), tensors.q);
    write_npy(path("k.npy"), tensors.k);
    write_npy(path("v.npy"), tensors.v);
    const clary_attention_params params = make_params(problem, tensors);
    const clary_status status = clary_attention(tensors.q.view(), tensors.k.view(), tensors.v.view(),
                                                tensors.out.view(), tensors.lse.view(), &params, nullptr);
    EXPECT_EQ(status, CLARY_OK) << clary_last_error();
    return tensors;
  }

  std::string files() const { return "--q " + path("q.npy") + " --k " + path("k.npy") + " --v " + path("v.npy"); }

 private:
  std::string folder_ = std::filesystem::temp_directory_path() / ("clary_command_" + std::to_string(getpid()));
};

std::string bytes_of(const Tensor& tensor) {
  size_t bytes = tensor.view()->dtype_bits / 8u;
  for (const int64_t dimension : tensor.shape()) bytes *= static_cast<size_t>(dimension);
  return {static_cast<const char*>(tensor.data()), bytes};
}

TEST_F(Command, TellsVersionAndHelp) {
  const Ran version = run("--version");
  EXPECT_EQ(version.code, 0);
  EXPECT_EQ(version.out, std::string("clary ") + clary_version() + "\n");
  for (const char* const name : {"", "info", "run", "check", "bench", "explain", "demo"}) {
    const Ran help = run(std::string(name) + " --help");
    EXPECT_EQ(help.code, 0) << name;
    EXPECT_NE(help.out.find(*name ? "Example:" : "Exit codes:"), std::string::npos) << help.out;
  }
}

TEST_F(Command, InfoNamesTheChosenInstructionSet) {
  const nlohmann::json info = run_json("info --json");
  EXPECT_EQ(info["cpu"], clary_cpu_name());
  EXPECT_GE(info["cores"], 1);
  ASSERT_EQ(info["instruction_sets"].size(), static_cast<size_t>(clary_isa_count()));
  bool found = false;
  for (int i = 0; i < clary_isa_count(); ++i) {
    EXPECT_EQ(info["instruction_sets"][static_cast<size_t>(i)]["name"], clary_isa_name(i));
    EXPECT_EQ(info["instruction_sets"][static_cast<size_t>(i)]["supported"], clary_isa_supported(i) == 1);
    found = found || (info["isa"] == clary_isa_name(i) && clary_isa_supported(i));
  }
  EXPECT_TRUE(found);
  const Ran text = run("info");
  EXPECT_EQ(text.code, 0);
  EXPECT_NE(text.out.find("chosen"), std::string::npos);
  EXPECT_EQ(text.out.find('\x1b'), std::string::npos);
}

TEST_F(Command, RunWritesWhatTheLibraryComputes) {
  const struct {
    const char* problem;
    const char* flags;
  } cases[] = {{"b2 hq4 hkv2 lq37 lk70 d24 dv16 int8 causal", "--precision int8 --causal bottom_right"},
               {"h2 l50 d32 exact bshd causal=3 window5,1 softcap20 scale0.3",
                "--precision exact --layout bshd --causal 3 --window 5,1 --softcap 20 --scale 0.3"},
               {"h2 l50 d32 exact causal=-3 window-1,1", "--precision exact --causal -3 --window -1,1"},
               {"h3 l65 d16 f16 int4 causal=top_left", "--precision int4 --causal top_left --threads 3"},
               {"h3 l65 d16 f16 out=f32", "--f32-output"}};
  for (const auto& [problem, flags] : cases) {
    const Tensors expected = write_inputs(parse_problem(problem));
    const Ran ran = run("run " + files() + " --output " + path("o.npy") + " --lse " + path("l.npy") + " " + flags);
    ASSERT_EQ(ran.code, 0) << problem << ": " << ran.err;
    const Tensor out = read_npy(path("o.npy")), lse = read_npy(path("l.npy"));
    EXPECT_EQ(out.dtype(), expected.out.dtype()) << problem;
    EXPECT_EQ(out.shape(), expected.out.shape()) << problem;
    EXPECT_TRUE(bytes_of(out) == bytes_of(expected.out)) << problem;  // bit for bit
    EXPECT_TRUE(bytes_of(lse) == bytes_of(expected.lse)) << problem;
    EXPECT_NE(bytes_of(out), std::string(bytes_of(out).size(), '\0')) << problem;
  }
}

TEST_F(Command, RunTakesMasksSlopesAndSinks) {
  const Problem problem = parse_problem("hq4 hkv2 l40 d16 exact mask=additive:0.6:b alibi sinks");
  const Tensors expected = write_inputs(problem);
  write_npy(path("m.npy"), expected.mask);
  write_npy(path("a.npy"), expected.alibi_slopes);
  write_npy(path("s.npy"), expected.sinks);
  const Ran ran = run("run " + files() + " --precision exact --mask " + path("m.npy") + " --alibi-slopes " +
                      path("a.npy") + " --sinks " + path("s.npy") + " --output " + path("o.npy") + " --explain --json");
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_TRUE(bytes_of(read_npy(path("o.npy"))) == bytes_of(expected.out));
  EXPECT_GT(nlohmann::json::parse(ran.out)["plan"].get<std::string>().size(), 20u);
}

TEST_F(Command, RunReadsSafetensors) {
  const std::string input = std::string(CLARY_SOURCE_DIR) + "/examples/data/minilm_qkv.safetensors";
  const Ran ran = run("run --input " + input + " --prefix layer4 --precision int8 --output " + path("o.npy"));
  ASSERT_EQ(ran.code, 0) << ran.err;
  const Safetensors file(input);
  Tensors tensors;
  tensors.q = file.load(*file.find("layer4.q"));
  tensors.k = file.load(*file.find("layer4.k"));
  tensors.v = file.load(*file.find("layer4.v"));
  tensors.out = Tensor("f16", tensors.q.shape());
  const clary_attention_params params = make_params(parse_problem("d32 f16 int8"), tensors);
  ASSERT_EQ(clary_attention(tensors.q.view(), tensors.k.view(), tensors.v.view(), tensors.out.view(), nullptr, &params,
                            nullptr),
            CLARY_OK);
  EXPECT_TRUE(bytes_of(read_npy(path("o.npy"))) == bytes_of(tensors.out));
  expect_wrong("run --input " + input + " --output " + path("o.npy"), "--prefix: needed");
  expect_wrong("run --input " + input + " --prefix layer1 --output " + path("o.npy"), "there are: layer0, layer4");
}

TEST_F(Command, RefusesBadFiles) {
  write_inputs(parse_problem("h1 l8 d8 exact"));
  const std::string to = " --output " + path("o.npy");
  EXPECT_EQ(run("run " + files() + to).code, 0);  // good before it is damaged
  std::filesystem::resize_file(path("k.npy"), 200);
  expect_wrong("run " + files() + to, "(at byte 200)");
  std::filesystem::remove(path("k.npy"));
  expect_wrong("run " + files() + to, "k.npy: No such file");
  write_npy(path("k.npy"), Tensor("f32", {1, 1, 8, 9}));
  expect_wrong("run " + files() + to, "k");
  write_npy(path("k.npy"), Tensor("f32", {8, 8}));
  expect_wrong("run " + files() + to, "k: 2 dimensions, expected 4");
  expect_wrong("check --input " + path("q.npy"), "(at byte 0)");
}

TEST_F(Command, RefusesWrongUse) {
  expect_wrong("", "subcommand");
  expect_wrong("frobnicate", "frobnicate");
  expect_wrong("info --frobnicate", "--frobnicate");
  expect_wrong("run --output x.npy", "--input");
  expect_wrong("run --q x.npy --output x.npy", "--k");
  expect_wrong("run --input x --causal sideways --output x.npy", "--causal: 'sideways': expected causal=top_left");
  expect_wrong("run --input x --softcap -1 --output x.npy", "--softcap");
  expect_wrong("run --input x --window 3 --output x.npy", "--window");
  expect_wrong("run --input x --window -2,3 --output x.npy", "--window");
  expect_wrong("run --input x --precision int9 --output x.npy", "--precision");
  expect_wrong("run --input x --threads 0 --output x.npy", "--threads");
  expect_wrong("explain h1 l8 --isa vax", "vax");
  expect_wrong("check", "described problem");
  expect_wrong("check h1 l8 x9", "x9");
  expect_wrong("check h1 l8 --precision int8,int9", "'int9': expected exact");
  expect_wrong("check h1 l8 --guard 0.1", "--guard: goes with files");
  expect_wrong("bench h1 l8 --repeat 0", "--repeat");
  std::ofstream(path("problems")) << "# comment\nh1 l8\nh1 lx\n";
  expect_wrong("bench --file " + path("problems"), "problems:3: ");
  expect_wrong("bench --file " + path("none"), "--file: cannot read");
}

TEST_F(Command, CheckJudgesTheError) {
  const std::string problem = "check hq4 hkv2 l96 d32 causal --precision exact,int8 ";
  EXPECT_EQ(run(problem + "--max-error 0.05").code, 0);
  const Ran failed = run(problem + "--max-error 1e-4");
  EXPECT_EQ(failed.code, 1);
  EXPECT_NE(failed.out.find("TOO LARGE"), std::string::npos);
  EXPECT_NE(failed.err.find("check failed"), std::string::npos);
  const nlohmann::json results = run_json(problem + "--json --rows 0")["results"];
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0]["errors"]["rows"], 4 * 96);
  EXPECT_LT(results[0]["errors"]["relative_l2"], 2e-6);
  EXPECT_LT(results[1]["errors"]["relative_l2"], 0.03);
  EXPECT_GT(results[1]["errors"]["relative_l2"], 1e-4);
}

TEST_F(Command, BenchCountsVisibleScores) {
  const std::pair<const char*, double> cases[] = {
      {"h2 lq10 lk20 d8", 2 * 10 * 20},
      {"h2 l10 d8 causal", 2 * 55},
      {"h1 lq4 lk10 d8 causal", 7 + 8 + 9 + 10},
      {"h1 lq4 lk10 d8 causal=top_left", 1 + 2 + 3 + 4},
      {"h1 l10 d8 window1,0", 19},
      {"h1 l10 d8 causal=-2", 36},
      {"hq4 hkv2 l10 d8 lens_q=3,4 lens_k=3,5 causal", 4 * (6 + 2 + 3 + 4 + 5)},
      {"h3 l10 d8 mask=key_padding:0.5", 3 * 10 * 5}};
  std::ofstream file(path("problems"));
  for (const auto& [problem, scores] : cases) file << problem << " exact  # " << scores << "\n\n";
  file.close();
  const nlohmann::json results = run_json("bench --repeat 1 --no-peak --json - --file " + path("problems"))["results"];
  ASSERT_EQ(results.size(), std::size(cases));
  for (size_t i = 0; i < std::size(cases); ++i) {
    EXPECT_EQ(results[i]["visible_scores"], cases[i].second) << cases[i].first;
    EXPECT_LT(results[i]["errors"]["relative_l2"], 2e-6) << cases[i].first;
    const double expected = cases[i].second * 2 * 16 / results[i]["time"]["median_s"].get<double>() * 1e-9;
    EXPECT_NEAR(results[i]["gops"], expected, 1e-9 * expected);
  }
}

TEST_F(Command, BenchChecksAndWritesJson) {
  const std::string problem = "bench 'h2 l64 d16 int8' 'h1 l32 d16' --precision int8,bf16 --no-peak ";
  const Ran checked = run(problem + "--check --json " + path("j"));
  EXPECT_EQ(checked.code, 0) << checked.err;
  const nlohmann::json json = nlohmann::json::parse(slurp(path("j")));
  EXPECT_EQ(json["results"].size(), 4u);
  EXPECT_FALSE(json["results"][0].contains("time"));
  for (const char* const key : {"cpu", "isa", "compiler", "flags", "date"})
    EXPECT_TRUE(json["environment"].contains(key)) << key;
  EXPECT_EQ(run(problem + "--check --max-error 1e-9").code, 1);
  expect_wrong(problem + "--check --json /no/such/folder/j --max-error x", "--max-error");
  EXPECT_EQ(run(problem + "--check --json /no/such/folder/j").code, 2);
}

// What --reads, --dense, --one-thread and --beside time beside a call, and the figures made of it.
TEST_F(Command, BenchTimesWhatACallIsComparedWith) {
  const std::string line = "bench 'hq4 hkv2 lq3 lk70 d16 dv8 bf16 exact window9,0' 'h1 l60 d64 exact window7,0' ";
  const std::string flags = "--reads --dense --one-thread --beside lk20 --no-peak --threads 2 --repeat 5 ";
  const nlohmann::json results = run_json(line + flags + "--json -")["results"];
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0]["reads"]["bytes"], 2 * 70 * (16 + 8) * 2);
  EXPECT_DOUBLE_EQ(results[0]["dense"]["density"], 10.0 / 70);
  for (const auto& r : results) {
    const double median = r["time"]["median_s"], reads = r["reads"]["time"]["median_s"];
    EXPECT_DOUBLE_EQ(r["reads"]["share"], reads / median);
    EXPECT_DOUBLE_EQ(r["reads"]["gb_per_s"], r["reads"]["bytes"].get<double>() / median * 1e-9);
    const double dense = r["dense"]["time"]["median_s"], density = r["dense"]["density"];
    EXPECT_DOUBLE_EQ(r["dense"]["over_density"], median / (density * dense));
    EXPECT_DOUBLE_EQ(r["one_thread"]["speedup"], r["one_thread"]["time"]["median_s"].get<double>() / median);
    EXPECT_GE(r["one_thread"]["busy"], 0);  // a call that is one task hands nothing out
    EXPECT_LE(r["one_thread"]["busy"], 1);
    const double beside = r["beside"]["gops"];
    EXPECT_DOUBLE_EQ(r["beside"]["ratio"], r["gops"].get<double>() / beside);
    EXPECT_GT(r["workspace_bytes"], 0);
    EXPECT_LT(r["errors"]["relative_l2"], 0.01);  // of the call, not of the dense one
  }
  const Ran text = run(line + flags);
  for (const char* const word :
       {"GB/s", "of plain reads", "density", "over density x dense", "x 1 thread", "busy", "x lk20", "0.143"})
    EXPECT_NE(text.out.find(word), std::string::npos) << word;
  const Ran plain = run("bench h1 l8 --repeat 1 --no-peak");
  for (const char* const word : {"GB/s", "density", "x 1 thread", "busy"})
    EXPECT_EQ(plain.out.find(word), std::string::npos) << word;
  const nlohmann::json hidden = run_json("bench h1 l8 d8 causal=-9 exact --dense --no-peak --repeat 1 --json -");
  EXPECT_EQ(hidden["results"][0]["dense"]["density"], 0);
  EXPECT_FALSE(hidden["results"][0]["dense"].contains("over_density"));
  expect_wrong("bench h1 l8 --check --dense", "--check: takes no times");
  expect_wrong("bench h1 l8 --beside l-1", "l-1");
}

TEST_F(Command, ExplainShowsThePlan) {
  const nlohmann::json plan = run_json("explain 'hq4 hkv2 l1024 d64 causal int8' --json --threads 1 --isa scalar")[0];
  EXPECT_EQ(plan["isa"], "scalar");
  EXPECT_EQ(plan["precision"], "int8");
  EXPECT_GT(plan["tiles"]["skipped"], 0);
  EXPECT_GT(plan["tiles"]["partial"], 0);
  const Ran text = run("explain hq32 hkv8 lq1 lk65536 d128 bf16 int4");  // no memory for K and V is touched
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_GT(text.out.size(), 100u);
}

TEST_F(Command, DemoShowsEveryPreset) {
  const std::string input = std::string(CLARY_SOURCE_DIR) + "/examples/data/minilm_qkv.safetensors";
  const Ran ran = run("demo --repeat 1 --prefix layer4 --input " + input);
  ASSERT_EQ(ran.code, 0) << ran.err;
  for (const char* const word :
       {"exact", "bf16", "int8_f16", "int8", "int4", "bf16x3", "auto", "layer4", "auto chose: ", "What you just saw"})
    EXPECT_NE(ran.out.find(word), std::string::npos) << word;
  EXPECT_EQ(ran.out.find("layer0"), std::string::npos);
}

}  // namespace
}  // namespace clary::support
