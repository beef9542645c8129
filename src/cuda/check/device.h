// A described problem on a GPU: tensors in device memory, a workspace, the call, and the way back.
#pragma once

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include <cuda_runtime_api.h>

#include "clary/clary.h"
#include "support/problem.h"

namespace clary::check {

inline void must(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Device memory between two guards of 256 bytes, which must still be there in the end.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes, const void* source = nullptr) : bytes_(bytes) {
    must(cudaMalloc(&base_, bytes + 2 * kGuard), "cudaMalloc");
    must(cudaMemset(base_, 0xff, bytes + 2 * kGuard), "cudaMemset");
    if (source != nullptr) must(cudaMemcpy(data(), source, bytes, cudaMemcpyHostToDevice), "upload");
  }
  Memory(Memory&& other) noexcept : base_(std::exchange(other.base_, nullptr)), bytes_(other.bytes_) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(base_, other.base_), std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Memory() { cudaFree(base_); }
  void* data() const { return base_ == nullptr ? nullptr : static_cast<char*>(base_) + kGuard; }
  size_t bytes() const { return bytes_; }
  void download(void* to) const { must(cudaMemcpy(to, data(), bytes_, cudaMemcpyDeviceToHost), "download"); }
  bool guards_hold() const {
    unsigned char edges[2 * kGuard];
    must(cudaMemcpy(edges, base_, kGuard, cudaMemcpyDeviceToHost), "guards");
    must(cudaMemcpy(edges + kGuard, static_cast<char*>(data()) + bytes_, kGuard, cudaMemcpyDeviceToHost), "guards");
    for (const unsigned char byte : edges)
      if (byte != 0xff) return false;
    return true;
  }

 private:
  static constexpr size_t kGuard = 256;
  void* base_ = nullptr;
  size_t bytes_ = 0;
};

class Call {
 public:
  Call(const support::Problem& problem, support::Tensors& host)
      : host_(host),
        q_(upload(host.q)),
        k_(upload(host.k)),
        v_(upload(host.v)),
        out_(host.out.size_bytes()),
        lse_(host.lse.size_bytes()),
        mask_(upload(host.mask)),
        slopes_(upload(host.alibi_slopes)),
        sinks_(upload(host.sinks)),
        cu_q_(host.cu_seqlens_q.size() * 4, host.cu_seqlens_q.data()),
        cu_k_(host.cu_seqlens_k.size() * 4, host.cu_seqlens_k.data()),
        params_(make_params(problem, host)) {
    q = on_device(host.q, q_), k = on_device(host.k, k_), v = on_device(host.v, v_), out = on_device(host.out, out_);
    lse = on_device(host.lse, lse_);
    mask = on_device(host.mask, mask_), slopes = on_device(host.alibi_slopes, slopes_);
    sinks = on_device(host.sinks, sinks_);
    params_.mask = host.mask.empty() ? nullptr : &mask;
    params_.alibi_slopes = host.alibi_slopes.empty() ? nullptr : &slopes;
    params_.sinks = host.sinks.empty() ? nullptr : &sinks;
    if (!host.cu_seqlens_q.empty()) {
      params_.cu_seqlens_q = static_cast<const int32_t*>(cu_q_.data());
      params_.cu_seqlens_k = static_cast<const int32_t*>(cu_k_.data());
      params_.max_len_q = problem.len_q, params_.max_len_k = problem.len_k;
    }
  }
  Call(const Call&) = delete;

  // Makes the workspace; CLARY_OK or the reason in clary_last_error().
  clary_status prepare() {
    size_t bytes = 0;
    const clary_status status = clary_cuda_workspace_bytes(&q, &k, &v, &out, lse_view(), &params_, &bytes);
    if (status != CLARY_OK) return status;
    workspace_ = Memory(bytes);
    params_.workspace = workspace_.data(), params_.workspace_bytes = bytes;
    return CLARY_OK;
  }
  clary_status enqueue(cudaStream_t stream) {
    params_.stream = stream;
    return clary_attention(&q, &k, &v, &out, lse_view(), &params_, nullptr);
  }
  void fetch() {
    out_.download(host_.out.data());
    if (!host_.lse.empty()) lse_.download(host_.lse.data());
  }
  bool guards_hold() const {
    return out_.guards_hold() && lse_.guards_hold() && (workspace_.data() == nullptr || workspace_.guards_hold());
  }
  clary_attention_params& params() { return params_; }
  Memory& memory_q() { return q_; }
  const clary_tensor* lse_view() const { return host_.lse.empty() ? nullptr : &lse; }

  clary_tensor q{}, k{}, v{}, out{}, lse{}, mask{}, slopes{}, sinks{};

 private:
  static Memory upload(const support::Tensor& t) { return Memory(t.size_bytes(), t.data()); }
  static clary_tensor on_device(const support::Tensor& t, const Memory& memory) {
    clary_tensor view = *t.view();
    view.data = memory.data(), view.device_type = 2, view.device_id = 0;
    return view;
  }

  support::Tensors& host_;
  Memory q_, k_, v_, out_, lse_, mask_, slopes_, sinks_, cu_q_, cu_k_, workspace_;
  clary_attention_params params_;
};

}  // namespace clary::check
