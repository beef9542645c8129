// clary_gpu_check: what can only be seen on a GPU. tools/gpu_check.sh runs it step by step.
//
//   devices            what there is; exits 3 where there is no usable GPU
//   compare            small problems against the emulator of the tests, quantiser and attention apart
//   lines FILE         problems of a file, one per line, against float64
//   mixed COUNT SEED   random problems of all features
//   large              tensors of more than 2^31 elements, 128k keys
//   bad                wrong devices, host pointers, small workspaces: errors, and a context that still works
//   streams            graph capture, replay with other inputs, two streams, the same bits 100 times
//   bench FILE         times, as JSON
//   variants FILE      times of kernels that might be faster than those that ship
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "cuda/check/bench.h"
#include "cuda/check/compare.h"
#include "cuda/check/device.h"
#include "cuda/judge.h"
#include "cuda/launch/kernels.h"
#include "support/random_problem.h"

namespace clary::check {
namespace {

using support::Problem;
using support::Tensors;

constexpr int kNoGpu = 3;

bool has_fp8() {
  int major = 0, minor = 0;
  must(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "device");
  must(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "device");
  return 10 * major + minor >= 89;
}

bool uses_fp8(const Problem& p) {
  return has_fp8() && (p.precision == CLARY_INT8 || p.precision == CLARY_INT4 || p.precision == CLARY_AUTO);
}

int devices() {
  int driver = 0, count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return std::puts("no NVIDIA driver"), kNoGpu;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0)
    return std::printf("no usable GPU: %s\n", cudaGetErrorString(error)), kNoGpu;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    must(cudaGetDeviceProperties(&properties, i), "properties");
    const auto* kernels = cuda::kernels_for(10 * properties.major + properties.minor);
    std::printf("%d: %s, compute capability %d.%d, %d SMs, driver %d, kernels %s\n", i, properties.name,
                properties.major, properties.minor, properties.multiProcessorCount, driver,
                kernels == nullptr ? "none" : kernels->name);
  }
  return 0;
}

// Runs one problem and judges about `limit` rows (0: all). False, with a line on stdout, when it is wrong.
bool runs_right(const Problem& p, int64_t limit) {
  Tensors tensors = make_tensors(p);
  Call call(p, tensors);
  const std::string line = support::to_string(p);
  if (call.prepare() != CLARY_OK || call.enqueue(nullptr) != CLARY_OK)
    return std::printf("WRONG \"%s\": %s\n", line.c_str(), clary_last_error()), false;
  must(cudaDeviceSynchronize(), line.c_str());
  call.fetch();
  const testing::AssertionResult result = test::judge(p, uses_fp8(p), tensors, limit);
  if (!call.guards_hold()) return std::printf("WRONG \"%s\": wrote beyond its memory\n", line.c_str()), false;
  if (!result) return std::printf("WRONG \"%s\": %s\n", line.c_str(), result.message()), false;
  return true;
}

int summary(int done, int wrong) {
  std::printf("%d problems, %d wrong\n", done, wrong);
  return wrong > 0 || done == 0 ? 1 : 0;
}

int lines(const std::string& path) {
  std::ifstream file(path);
  int done = 0, wrong = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    ++done, wrong += !runs_right(support::parse_problem(line), 300);
  }
  return summary(done, wrong);
}

int mixed(uint64_t count, uint64_t seed) {
  test::RandomProblems problems(seed);
  int wrong = 0;
  for (uint64_t n = 0; n < count; ++n) {
    Problem p = problems.next();
    if (p.dtype == support::DType::f32 && p.precision == CLARY_EXACT) p.dtype = support::DType::bf16;
    wrong += !runs_right(p, 0);
  }
  return summary(static_cast<int>(count), wrong);
}

// Two heads 2^31 + 64 elements apart, in all four tensors.
bool far_heads_are_right(const Problem& p) {
  constexpr int64_t kStride = (int64_t{1} << 31) + 64;
  Tensors tensors = make_tensors(p);
  Call call(p, tensors);
  if (call.prepare() != CLARY_OK) return false;
  std::vector<Memory> wide;
  std::vector<std::vector<int64_t>> strides;
  const auto spread = [&](clary_tensor& view) {
    const size_t head = static_cast<size_t>(view.shape[2] * view.shape[3]) * 2;
    wide.emplace_back(static_cast<size_t>(kStride) * 2 + head);
    char* const to = static_cast<char*>(wide.back().data());
    for (size_t h = 0; h < 2; ++h)
      must(cudaMemcpy(to + h * kStride * 2, static_cast<char*>(view.data) + h * head, head, cudaMemcpyDeviceToDevice),
           "spreading heads");
    strides.push_back({0, kStride, view.shape[3], 1});
    view.data = to, view.strides = strides.back().data();
  };
  strides.reserve(4);
  const clary_tensor out = call.out;
  for (clary_tensor* view : {&call.q, &call.k, &call.v, &call.out}) spread(*view);
  if (call.enqueue(nullptr) != CLARY_OK) return std::printf("WRONG: %s\n", clary_last_error()), false;
  const size_t head = static_cast<size_t>(out.shape[2] * out.shape[3]) * 2;
  for (size_t h = 0; h < 2; ++h)
    must(cudaMemcpy(static_cast<char*>(out.data) + h * head, static_cast<char*>(call.out.data) + h * kStride * 2, head,
                    cudaMemcpyDeviceToDevice),
         "collecting heads");
  call.fetch();
  const testing::AssertionResult result = test::judge(p, uses_fp8(p), tensors);
  if (!result) std::printf("WRONG with heads 2^31 elements apart: %s\n", result.message());
  return result;
}

int large() {
  int wrong = 0;
  const char* const problems[] = {
      "hq1 hkv1 lq128 lk131072 d128 bf16 int8",
      "hq1 hkv1 lq131072 lk4096 d128 bf16 int8 causal",
      "hq2 hkv1 lq200 lk131072 d64 bf16 exact",
  };
  for (const char* line : problems) wrong += !runs_right(support::parse_problem(line), 40);
  wrong += !far_heads_are_right(support::parse_problem("hq2 hkv2 lq200 lk300 d64 bf16 int8"));
  return summary(static_cast<int>(std::size(problems)) + 1, wrong);
}

// One call that must be refused with a message that holds `text`.
bool refused(Call& call, const char* text) {
  const clary_status status = call.enqueue(nullptr);
  const bool right = status != CLARY_OK && std::string(clary_last_error()).find(text) != std::string::npos;
  if (!right) std::printf("WRONG: status %d, \"%s\", expected \"%s\"\n", status, clary_last_error(), text);
  return right;
}

int bad() {
  const Problem p = support::parse_problem("hq2 hkv1 lq100 lk200 d64 bf16 int8");
  Tensors tensors = make_tensors(p);
  int wrong = 0;
  const auto attempt = [&](const char* text, const auto& spoil) {
    Call call(p, tensors);
    if (call.prepare() != CLARY_OK) ++wrong;
    spoil(call);
    wrong += !refused(call, text);
  };
  attempt("host memory", [&](Call& call) { call.k.data = tensors.k.data(); });
  attempt("host memory", [&](Call& call) { call.params().workspace = tensors.k.data(); });
  attempt("workspace: has", [](Call& call) { --call.params().workspace_bytes; });
  attempt("workspace: has 0", [](Call& call) { call.params().workspace = nullptr; });
  attempt("not aligned",
          [](Call& call) { call.params().workspace = static_cast<char*>(call.params().workspace) + 16; });
  attempt("device_id", [](Call& call) {
    call.q.device_id = call.k.device_id = call.v.device_id = call.out.device_id = call.lse.device_id = 99;
  });
  attempt("device_type 1", [](Call& call) { call.v.device_type = 1; });
  attempt("guard", [](Call& call) { call.params().guard = 0.01; });
  wrong += !runs_right(p, 0);  // the context is still there
  return summary(9, wrong);
}

// The bits of out after a call on `stream`.
std::vector<char> bits_of(Tensors& tensors, Call& call) {
  call.fetch();
  const auto* bytes = static_cast<const char*>(tensors.out.data());
  return {bytes, bytes + tensors.out.size_bytes()};
}

bool graph_replays(const Problem& p, cudaStream_t stream) {
  Tensors first = make_tensors(p), second = make_tensors([&] {
                                     Problem other = p;
                                     other.seed += 1;
                                     return other;
                                   }());
  Call call(p, first), reference(p, second);
  if (call.prepare() != CLARY_OK || reference.prepare() != CLARY_OK) return false;
  if (call.enqueue(stream) != CLARY_OK || reference.enqueue(stream) != CLARY_OK) return false;
  must(cudaStreamSynchronize(stream), "before capture");
  const std::vector<char> direct = bits_of(first, call), want = bits_of(second, reference);
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  const clary_status status = call.enqueue(stream);
  must(cudaStreamEndCapture(stream, &graph), "end of capture");
  must(cudaGraphInstantiate(&executable, graph, 0), "graph");
  must(cudaGraphLaunch(executable, stream), "replay");
  must(cudaStreamSynchronize(stream), "replay");
  const bool same = bits_of(first, call) == direct;
  must(cudaMemcpy(call.q.data, second.q.data(), second.q.size_bytes(), cudaMemcpyHostToDevice), "other inputs");
  must(cudaMemcpy(call.k.data, second.k.data(), second.k.size_bytes(), cudaMemcpyHostToDevice), "other inputs");
  must(cudaMemcpy(call.v.data, second.v.data(), second.v.size_bytes(), cudaMemcpyHostToDevice), "other inputs");
  must(cudaGraphLaunch(executable, stream), "replay");
  must(cudaStreamSynchronize(stream), "replay");
  const bool other = bits_of(first, call) == want;
  cudaGraphExecDestroy(executable), cudaGraphDestroy(graph);
  return status == CLARY_OK && same && other;
}

// Two calls at once on two streams, 100 times: always the bits of a call alone.
bool streams_are_independent(const Problem& p, cudaStream_t one, cudaStream_t two) {
  Tensors a = make_tensors(p), b = make_tensors(p);
  Call first(p, a), second(p, b);
  if (first.prepare() != CLARY_OK || second.prepare() != CLARY_OK || first.enqueue(one) != CLARY_OK) return false;
  must(cudaDeviceSynchronize(), "alone");
  const std::vector<char> want = bits_of(a, first);
  for (int run = 0; run < 100; ++run) {
    if (first.enqueue(one) != CLARY_OK || second.enqueue(two) != CLARY_OK) return false;
    must(cudaDeviceSynchronize(), "two streams");
    if (bits_of(a, first) != want || bits_of(b, second) != want) return false;
  }
  return true;
}

int streams() {
  cudaStream_t one, two;
  must(cudaStreamCreateWithFlags(&one, cudaStreamNonBlocking), "stream");
  must(cudaStreamCreateWithFlags(&two, cudaStreamNonBlocking), "stream");
  int wrong = 0, done = 0;
  for (const char* line : {"hq4 hkv2 lq500 lk700 d128 bf16 int8 causal",
                           "hq4 hkv2 lq500 lk700 d64 f16 exact mask=block", "hq4 hkv2 lq500 lk700 d64 bf16 int4"}) {
    const Problem p = support::parse_problem(line);
    const bool right = graph_replays(p, one) && streams_are_independent(p, one, two);
    if (!right) std::printf("WRONG \"%s\" under graphs or two streams: %s\n", line, clary_last_error());
    ++done, wrong += !right;
  }
  return summary(done, wrong);
}

int run(const std::vector<std::string>& words) {
  const std::string command = words.empty() ? "" : words[0];
  if (command == "devices") return devices();
  if (const int status = devices(); status != 0) return status;
  if (command == "compare") {
    int done = 0;
    const int wrong = compare(&done);
    return summary(done, wrong);
  }
  if (command == "lines" && words.size() == 2) return lines(words[1]);
  if (command == "mixed" && words.size() == 3) return mixed(std::stoull(words[1]), std::stoull(words[2]));
  if (command == "large") return large();
  if (command == "bad") return bad();
  if (command == "streams") return streams();
  if (command == "bench" && words.size() == 2) return bench(words[1]);
  if (command == "variants" && words.size() == 2) return variants(words[1]) > 0 ? 1 : 0;
  std::puts(
      "clary_gpu_check devices | compare | lines FILE | mixed COUNT SEED | large | bad | streams | bench FILE |\n"
      "                variants FILE");
  return 2;
}

}  // namespace
}  // namespace clary::check

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  try {
    return clary::check::run(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const std::exception& error) {
    std::printf("WRONG: %s\n", error.what());
    return 1;
  }
}
