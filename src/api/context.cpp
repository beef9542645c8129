#include "api/context.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "core/status.h"
#include "cpu/dispatch.h"

namespace {

// Memory of that size asks for huge pages: packed keys and values are more than the TLB has small ones for (Zen 3,
// 4096 keys: 1.5 to 2 % of a call).
constexpr size_t kHugePage = size_t{2} << 20;

std::align_val_t alignment_of(size_t bytes) { return std::align_val_t(bytes >= kHugePage ? kHugePage : 64); }

}  // namespace

void* clary_allocator::take(size_t bytes) const {
  if (allocate != nullptr) return allocate(user, bytes);
  void* const memory = ::operator new(bytes, alignment_of(bytes), std::nothrow);
#ifdef MADV_HUGEPAGE
  if (memory != nullptr && bytes >= kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);  // no more than a hint
#endif
  return memory;
}

void clary_allocator::give_back(void* memory, size_t bytes) const {
  if (memory == nullptr) return;
  if (release != nullptr) return release(user, memory, bytes);
  ::operator delete(memory, alignment_of(bytes));
}

clary_status clary_context::reserve(size_t bytes) {
  if (bytes <= workspace_bytes) return CLARY_OK;
  allocator.give_back(workspace, workspace_bytes);
  workspace_bytes = 0;
  workspace = allocator.take(bytes);
  if (workspace == nullptr)
    return clary::fail(CLARY_OUT_OF_MEMORY, "the allocator returned NULL for a workspace of %zu bytes", bytes);
  workspace_bytes = bytes;
  return CLARY_OK;
}

namespace clary {
namespace {

// More threads than this are a mistake, not a machine.
constexpr int32_t kMostThreads = 1024;

clary_status read_options(const clary_context_options* given, clary_context_options& options) {
  clary_context_options_init(&options);
  if (given == nullptr) return CLARY_OK;
  constexpr size_t kSmallest = offsetof(clary_context_options, parallel_for);
  if (given->size < kSmallest || given->size > 4096 || given->size % 8 != 0)
    return fail(CLARY_INVALID_ARGUMENT, "options.size: is %zu, must be sizeof(clary_context_options), here %zu",
                given->size, sizeof options);
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (size_t i = sizeof options; i < given->size; ++i)
    if (bytes[i] != 0)
      return fail(CLARY_INVALID_ARGUMENT, "options: sets a field (byte %zu) that this version %s does not know", i,
                  clary_version());
  std::memcpy(&options, given, std::min(given->size, sizeof options));
  if (options.threads < 1 || options.threads > kMostThreads)
    return fail(CLARY_INVALID_ARGUMENT, "threads: is %d, allowed are 1 to %d", options.threads, kMostThreads);
  if ((options.allocate == nullptr) != (options.release == nullptr))
    return fail(CLARY_INVALID_ARGUMENT, "%s: is NULL, but the other one of allocate and release is given",
                options.allocate == nullptr ? "allocate" : "release");
  return CLARY_OK;
}

}  // namespace

clary_status make_context(const clary_context_options* given, std::unique_ptr<clary_context>& context) {
  clary_context_options options;
  CLARY_TRY(read_options(given, options));
  const KernelTable* kernels = nullptr;
  CLARY_TRY(choose_kernels(options.isa, &kernels));
  try {
    context = std::make_unique<clary_context>();
    if (options.parallel_for == nullptr && options.threads > 1)
      context->pool = std::make_unique<ThreadPool>(options.threads);
  } catch (const std::exception& error) {  // no memory, or no more threads
    return fail(CLARY_OUT_OF_MEMORY, "threads: cannot start %d (%s)", options.threads, error.what());
  }
  context->kernels = kernels;
  context->allocator = {options.allocate, options.release, options.allocator_user};
  context->parallel = {context->pool.get(), options.parallel_for, options.parallel_user, options.threads};
  return CLARY_OK;
}

}  // namespace clary

void clary_context_options_init(clary_context_options* options) {
  *options = {};
  options->size = sizeof *options;
  options->threads = clary::available_threads();
}

clary_status clary_context_create(const clary_context_options* options, clary_context** context) {
  clary::clear_error();
  if (context == nullptr) return clary::fail(CLARY_INVALID_ARGUMENT, "context: is NULL");
  std::unique_ptr<clary_context> made;
  CLARY_TRY(clary::make_context(options, made));
  *context = made.release();
  return CLARY_OK;
}

void clary_context_destroy(clary_context* context) { delete context; }

const char* clary_context_isa(const clary_context* context) { return context == nullptr ? "" : context->kernels->name; }

size_t clary_context_workspace_bytes(const clary_context* context) {
  return context == nullptr ? 0 : context->workspace_bytes;
}
