// Clary for C++20: a thin header over clary/clary.h. Nothing here throws except std::bad_alloc.
//
//   clary::TensorView q(q_data, {1, 8, 512, 64}), k(...), v(...);
//   clary::MutableTensorView out(out_data, {1, 8, 512, 64});
//   clary::Status status = clary::attention(q, k, v, out, {.causal = clary::Causal::bottom_right(),
//                                                          .precision = clary::Precision::int8});
//   if (!status) std::cerr << status.message();
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <memory_resource>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "clary/clary.h"

namespace clary {
inline namespace v0 {

// ---- results ----------------------------------------------------------------------------------------------------

// What became of a call: true when it succeeded, otherwise a code and a message that names the argument.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(clary_status code, std::string message) : code_(code), message_(std::move(message)) {}
  // Of a call of the C interface on this thread.
  static Status of(clary_status code) { return code == CLARY_OK ? Status() : Status(code, clary_last_error()); }

  explicit operator bool() const { return code_ == CLARY_OK; }
  clary_status code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  clary_status code_ = CLARY_OK;
  std::string message_;
};

// A T, or the status of the failure. `*` and `->` only after a check.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}
  Result(Status failure) : state_(std::move(failure)) {}

  explicit operator bool() const { return state_.index() == 0; }
  Status status() const { return *this ? Status() : std::get<1>(state_); }
  T& operator*() & { return *std::get_if<0>(&state_); }
  const T& operator*() const& { return *std::get_if<0>(&state_); }
  T&& operator*() && { return std::move(*std::get_if<0>(&state_)); }
  T* operator->() { return std::get_if<0>(&state_); }
  const T* operator->() const { return std::get_if<0>(&state_); }

 private:
  std::variant<T, Status> state_;
};

// ---- tensors ----------------------------------------------------------------------------------------------------

enum class DType { f32, f16, bf16, boolean, u8, i32 };

template <class T>
constexpr DType dtype_of() {
  using Element = std::remove_cv_t<T>;
  static_assert(
      std::is_same_v<Element, float> || std::is_same_v<Element, bool> || std::is_same_v<Element, std::uint8_t>,
      "name the type of 16-bit data: TensorView(pointer, DType::bf16, shape)");
  if constexpr (std::is_same_v<Element, float>) return DType::f32;
  if constexpr (std::is_same_v<Element, bool>) return DType::boolean;
  return DType::u8;
}

// Memory that someone else owns and Clary only reads. Up to 4 dimensions; strides in elements, dense when not given.
class TensorView {
 public:
  static constexpr std::size_t kMaxDims = 4;

  template <class T, std::size_t N>
  TensorView(const T* data, const std::int64_t (&shape)[N]) : TensorView(data, dtype_of<T>(), shape) {}
  template <class T, std::size_t N>
  TensorView(const T* data, const std::int64_t (&shape)[N], const std::int64_t (&strides)[N])
      : TensorView(data, dtype_of<T>(), shape, strides) {}
  template <std::size_t N>
  TensorView(const void* data, DType dtype, const std::int64_t (&shape)[N])
      : data_(data), dtype_(dtype), ndim_(static_cast<int>(N)) {
    static_assert(N <= kMaxDims);
    for (std::size_t i = 0; i < N; ++i) shape_[i] = shape[i];
  }
  template <std::size_t N>
  TensorView(const void* data, DType dtype, const std::int64_t (&shape)[N], const std::int64_t (&strides)[N])
      : TensorView(data, dtype, shape) {
    has_strides_ = true;
    for (std::size_t i = 0; i < N; ++i) strides_[i] = strides[i];
  }

  const void* data() const { return data_; }
  DType dtype() const { return dtype_; }
  std::span<const std::int64_t> shape() const { return {shape_, static_cast<std::size_t>(ndim_)}; }

  // The C form, which points into this view.
  clary_tensor c_tensor() const {
    constexpr std::uint8_t kCode[] = {2, 2, 4, 6, 1, 0}, kBits[] = {32, 16, 16, 8, 8, 32};
    clary_tensor tensor{};
    tensor.data = const_cast<void*>(data_);
    tensor.device_type = 1;
    tensor.ndim = ndim_;
    tensor.dtype_code = kCode[static_cast<int>(dtype_)];
    tensor.dtype_bits = kBits[static_cast<int>(dtype_)];
    tensor.dtype_lanes = 1;
    tensor.shape = shape_;
    tensor.strides = has_strides_ ? strides_ : nullptr;
    return tensor;
  }

 private:
  const void* data_;
  DType dtype_;
  int ndim_;
  bool has_strides_ = false;
  std::int64_t shape_[kMaxDims] = {}, strides_[kMaxDims] = {};
};

// The same of memory that Clary may write: outputs.
class MutableTensorView : public TensorView {
 public:
  template <class T, std::size_t N>
  MutableTensorView(T* data, const std::int64_t (&shape)[N]) : TensorView(data, shape) {
    static_assert(!std::is_const_v<T>);
  }
  template <class T, std::size_t N>
  MutableTensorView(T* data, const std::int64_t (&shape)[N], const std::int64_t (&strides)[N])
      : TensorView(data, shape, strides) {
    static_assert(!std::is_const_v<T>);
  }
  template <std::size_t N>
  MutableTensorView(void* data, DType dtype, const std::int64_t (&shape)[N]) : TensorView(data, dtype, shape) {}
  template <std::size_t N>
  MutableTensorView(void* data, DType dtype, const std::int64_t (&shape)[N], const std::int64_t (&strides)[N])
      : TensorView(data, dtype, shape, strides) {}
};

// ---- options ----------------------------------------------------------------------------------------------------

enum class Layout { bhsd = CLARY_BHSD, bshd = CLARY_BSHD };

enum class Precision {
  exact = CLARY_EXACT,
  bf16 = CLARY_BF16,
  int8_f16 = CLARY_INT8_F16,
  int8 = CLARY_INT8,
  int4 = CLARY_INT4,
  automatic = CLARY_AUTO,
  bf16x3 = CLARY_BF16X3
};

// Which keys a query may see because of its place. The alignment is always named.
class Causal {
 public:
  static constexpr Causal none() { return {CLARY_NOT_CAUSAL, 0}; }
  static constexpr Causal top_left() { return {CLARY_CAUSAL_TOP_LEFT, 0}; }
  static constexpr Causal bottom_right() { return {CLARY_CAUSAL_BOTTOM_RIGHT, 0}; }
  static constexpr Causal offset(std::int64_t offset) { return {CLARY_CAUSAL_OFFSET, offset}; }
  constexpr clary_causal kind() const { return kind_; }
  constexpr std::int64_t value() const { return offset_; }

 private:
  constexpr Causal(clary_causal kind, std::int64_t offset) : kind_(kind), offset_(offset) {}
  clary_causal kind_;
  std::int64_t offset_;
};

struct Window {
  std::int64_t left = -1, right = -1;  // -1 = open
};

// The fields of clary_attention_params, which says what each means.
struct AttentionOptions {
  Layout layout = Layout::bhsd;
  Causal causal = Causal::none();
  Window window = {};
  std::optional<double> softmax_scale = {};  // 1 / sqrt(Dk) when not given
  double softcap = 0;
  std::optional<TensorView> mask = {}, alibi_slopes = {}, sinks = {};
  std::span<const std::int32_t> cu_seqlens_q = {}, cu_seqlens_k = {};  // sequences + 1 entries each
  Precision precision = Precision::automatic;
  std::optional<double> guard = {};
  int guard_rows = 16;
  std::optional<MutableTensorView> lse = {};
};

namespace detail {

// The C parameters of some options, and what they point to. Neither copied nor moved.
struct BoundOptions {
  explicit BoundOptions(const AttentionOptions& given) : options(given) {
    clary_attention_params_init(&params);
    params.layout = static_cast<clary_layout>(options.layout);
    params.precision = static_cast<clary_precision>(options.precision);
    params.causal = options.causal.kind();
    params.causal_offset = options.causal.value();
    params.window_left = options.window.left;
    params.window_right = options.window.right;
    if (options.softmax_scale) params.softmax_scale = *options.softmax_scale;
    params.softcap = options.softcap;
    params.mask = bind(options.mask, mask);
    params.alibi_slopes = bind(options.alibi_slopes, alibi_slopes);
    params.sinks = bind(options.sinks, sinks);
    params.cu_seqlens_q = options.cu_seqlens_q.data();
    params.cu_seqlens_k = options.cu_seqlens_k.data();
    params.num_sequences = static_cast<std::int64_t>(options.cu_seqlens_q.size()) - (params.cu_seqlens_q ? 1 : 0);
    if (options.guard) params.guard = *options.guard;
    params.guard_rows = options.guard_rows;
    lse_or_null = bind(options.lse, lse);
  }
  BoundOptions(const BoundOptions&) = delete;
  BoundOptions& operator=(const BoundOptions&) = delete;

  // The one thing that the C interface cannot see.
  Status check() const {
    if (options.cu_seqlens_q.size() == options.cu_seqlens_k.size()) return {};
    return {CLARY_INVALID_ARGUMENT, "cu_seqlens_k: has " + std::to_string(options.cu_seqlens_k.size()) +
                                        " entries, must have as many as cu_seqlens_q, " +
                                        std::to_string(options.cu_seqlens_q.size())};
  }

  template <class View>
  static const clary_tensor* bind(const std::optional<View>& view, clary_tensor& tensor) {
    if (!view) return nullptr;
    tensor = view->c_tensor();
    return &tensor;
  }

  AttentionOptions options;
  clary_tensor mask{}, alibi_slopes{}, sinks{}, lse{};
  const clary_tensor* lse_or_null = nullptr;
  clary_attention_params params{};
};

template <class T, void (*destroy)(T*)>
struct Deleter {
  void operator()(T* object) const { destroy(object); }
};

}  // namespace detail

// ---- context ----------------------------------------------------------------------------------------------------

// parallel_for(count, task) runs task(i) for every i in 0 .. count-1 and returns when all are done.
using ParallelFor = std::function<void(std::size_t count, const std::function<void(std::size_t)>& task)>;

struct ContextOptions {
  std::optional<int> threads = {};  // the cores this process may use when not given
  ParallelFor parallel_for = {};    // the caller's thread pool; must not throw
  std::pmr::memory_resource* memory = nullptr;
  const char* isa = nullptr;
};

// Owns the threads and the workspace.
class Context {
 public:
  static Result<Context> create(const ContextOptions& options = {}) {
    Context context;
    clary_context_options c_options;
    clary_context_options_init(&c_options);
    if (options.threads) c_options.threads = *options.threads;
    c_options.isa = options.isa;
    if (options.parallel_for) {
      context.parallel_for_ = std::make_unique<ParallelFor>(options.parallel_for);
      c_options.parallel_for = run_parallel;
      c_options.parallel_user = context.parallel_for_.get();
    }
    if (options.memory != nullptr) {
      c_options.allocate = allocate;
      c_options.release = release;
      c_options.allocator_user = options.memory;
    }
    clary_context* handle = nullptr;
    Status status = Status::of(clary_context_create(&c_options, &handle));
    if (!status) return status;
    context.handle_.reset(handle);
    return context;
  }

  std::string isa() const { return clary_context_isa(handle_.get()); }
  std::size_t workspace_bytes() const { return clary_context_workspace_bytes(handle_.get()); }
  clary_context* handle() const { return handle_.get(); }

 private:
  static constexpr std::size_t kAlignmentBytes = 64;

  Context() = default;
  static void run_parallel(void* user, std::size_t count, void (*task)(void*, std::size_t), void* task_arg) {
    (*static_cast<ParallelFor*>(user))(count, [task, task_arg](std::size_t i) { task(task_arg, i); });
  }
  static void* allocate(void* user, std::size_t bytes) {
    try {
      return static_cast<std::pmr::memory_resource*>(user)->allocate(bytes, kAlignmentBytes);
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
  }
  static void release(void* user, void* memory, std::size_t bytes) {
    static_cast<std::pmr::memory_resource*>(user)->deallocate(memory, bytes, kAlignmentBytes);
  }

  std::unique_ptr<ParallelFor> parallel_for_;  // before handle_: outlives it
  std::unique_ptr<clary_context, detail::Deleter<clary_context, clary_context_destroy>> handle_;
};

// ---- attention --------------------------------------------------------------------------------------------------

// context nullptr: a default one for this call (slow).
inline Status attention(const TensorView& q, const TensorView& k, const TensorView& v, const MutableTensorView& out,
                        const AttentionOptions& options = {}, Context* context = nullptr) {
  const detail::BoundOptions bound(options);
  if (Status status = bound.check(); !status) return status;
  const clary_tensor c_q = q.c_tensor(), c_k = k.c_tensor(), c_v = v.c_tensor(), c_out = out.c_tensor();
  return Status::of(clary_attention(&c_q, &c_k, &c_v, &c_out, bound.lse_or_null, &bound.params,
                                    context != nullptr ? context->handle() : nullptr));
}

// Results of the same queries over disjoint sets of keys become one; clary_merge says how.
inline Status merge(std::span<const TensorView> outs, std::span<const TensorView> lses, const MutableTensorView& out,
                    const std::optional<MutableTensorView>& lse = {}, Layout layout = Layout::bhsd,
                    Context* context = nullptr) {
  if (outs.size() != lses.size())
    return {CLARY_INVALID_ARGUMENT, "lses: has " + std::to_string(lses.size()) + " parts, must have as many as outs, " +
                                        std::to_string(outs.size())};
  std::vector<clary_tensor> tensors;
  for (const auto parts : {outs, lses})
    for (const TensorView& part : parts) tensors.push_back(part.c_tensor());
  std::vector<const clary_tensor*> pointers;
  for (const clary_tensor& tensor : tensors) pointers.push_back(&tensor);
  const clary_tensor c_out = out.c_tensor();
  clary_tensor c_lse{};
  return Status::of(clary_merge(pointers.data(), pointers.data() + outs.size(), static_cast<std::int64_t>(outs.size()),
                                static_cast<clary_layout>(layout), &c_out, detail::BoundOptions::bind(lse, c_lse),
                                context != nullptr ? context->handle() : nullptr));
}

// Checked once, run often. Shapes, strides and types are remembered; the data of mask, slopes, sinks and cu_seqlens
// and the context must outlive the plan.
class Plan {
 public:
  static Result<Plan> create(const TensorView& q, const TensorView& k, const TensorView& v,
                             const MutableTensorView& out, const AttentionOptions& options, Context& context) {
    Plan plan;
    plan.bound_ = std::make_unique<detail::BoundOptions>(options);
    if (Status status = plan.bound_->check(); !status) return status;
    const clary_tensor c_q = q.c_tensor(), c_k = k.c_tensor(), c_v = v.c_tensor(), c_out = out.c_tensor();
    clary_plan* handle = nullptr;
    Status status = Status::of(clary_plan_create(&c_q, &c_k, &c_v, &c_out, plan.bound_->lse_or_null,
                                                 &plan.bound_->params, context.handle(), &handle));
    if (!status) return status;
    plan.handle_.reset(handle);
    return plan;
  }

  // lse exactly when the plan was made with one.
  Status run(const void* q, const void* k, const void* v, void* out, float* lse = nullptr) {
    return Status::of(clary_plan_run(handle_.get(), q, k, v, out, lse));
  }
  Result<clary_plan_info> info() const {
    clary_plan_info info{};
    info.size = sizeof info;
    Status status = Status::of(clary_plan_get_info(handle_.get(), &info));
    if (!status) return status;
    return info;
  }
  Result<clary_head_info> head(std::int64_t batch, std::int64_t head) const {
    clary_head_info info{};
    info.size = sizeof info;
    Status status = Status::of(clary_plan_get_head(handle_.get(), batch, head, &info));
    if (!status) return status;
    return info;
  }
  std::string describe() const {
    std::string text(clary_plan_describe(handle_.get(), nullptr, 0), '\0');
    clary_plan_describe(handle_.get(), text.data(), text.size() + 1);
    return text;
  }
  clary_plan* handle() const { return handle_.get(); }

 private:
  Plan() = default;
  std::unique_ptr<detail::BoundOptions> bound_;  // before handle_: outlives it
  std::unique_ptr<clary_plan, detail::Deleter<clary_plan, clary_plan_destroy>> handle_;
};

}  // namespace v0
}  // namespace clary
