// The context behind the C interface: kernels, threads, and a workspace that only grows.
#pragma once

#include <memory>
#include <mutex>

#include "core/parallel.h"
#include "kernel/args.h"

// Memory from the caller's allocator or operator new, 64-byte aligned.
struct clary_allocator {
  clary_allocate_fn allocate = nullptr;
  clary_release_fn release = nullptr;
  void* user = nullptr;

  void* take(size_t bytes) const;
  void give_back(void* memory, size_t bytes) const;
};

struct clary_context {
  const clary::KernelTable* kernels = nullptr;
  clary_allocator allocator;
  std::unique_ptr<clary::ThreadPool> pool;
  clary::Parallel parallel;
  std::mutex mutex;  // one call at a time
  void* workspace = nullptr;
  size_t workspace_bytes = 0;

  ~clary_context() { allocator.give_back(workspace, workspace_bytes); }
  // Makes the workspace at least so large; what it held is lost.
  clary_status reserve(size_t bytes);
};

namespace clary {
clary_status make_context(const clary_context_options* options, std::unique_ptr<clary_context>& context);
}
