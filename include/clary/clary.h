/* Clary: attention in 4 and 8 bits. The C interface.
 *
 * Letters used throughout: B batch, Hq / Hkv query and key-value heads, Lq / Lk lengths, Dk / Dv head dims.
 * Every function is safe to call from several threads, but one context serves one call at a time (others wait).
 * Functions that return clary_status leave a reason in clary_last_error() of the calling thread unless it is CLARY_OK.
 */
#ifndef CLARY_CLARY_H
#define CLARY_CLARY_H

#include <stddef.h>
#include <stdint.h>

#define CLARY_VERSION_MAJOR 0
#define CLARY_VERSION_MINOR 1
#define CLARY_VERSION_PATCH 0

#if defined(CLARY_BUILD)
#define CLARY_API __attribute__((visibility("default")))
#else
#define CLARY_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum clary_status {
  CLARY_OK = 0,
  CLARY_INVALID_ARGUMENT = 1, /* an argument is wrong; clary_last_error() names it, its value and what is allowed */
  CLARY_UNSUPPORTED = 2,      /* well formed, but not served: a device, a dtype, an instruction set this CPU lacks */
  CLARY_OUT_OF_MEMORY = 3,    /* the allocator returned NULL */
  CLARY_INTERNAL = 4          /* a defect in Clary */
} clary_status;

/* The reason of this thread's last failure; "" when there was none. Valid until the thread's next Clary call. */
CLARY_API const char* clary_last_error(void);
/* "INVALID_ARGUMENT" and so on. */
CLARY_API const char* clary_status_name(clary_status status);
/* "0.1.0" */
CLARY_API const char* clary_version(void);

/* ---- tensors ------------------------------------------------------------------------------------------------- */

/* A view of memory that someone else owns. Field for field DLPack's DLTensor, so that a `DLTensor*` may be passed.
 * The last dimension must have stride 1. A dimension of size 1 may have any stride; a stride of 0 broadcasts. */
typedef struct clary_tensor {
  void* data;
  int32_t device_type; /* DLPack: 1 = CPU, 2 = CUDA. All tensors of a call are on one device. */
  int32_t device_id;
  int32_t ndim;
  uint8_t dtype_code; /* DLPack: 0 int, 1 uint, 2 float, 4 bfloat, 6 bool */
  uint8_t dtype_bits;
  uint16_t dtype_lanes;   /* 1 */
  const int64_t* shape;   /* ndim sizes */
  const int64_t* strides; /* ndim strides in elements; NULL: dense, row-major */
  uint64_t byte_offset;   /* added to data */
} clary_tensor;

/* ---- parameters ---------------------------------------------------------------------------------------------- */

typedef enum clary_layout {
  CLARY_BHSD = 0, /* [B, H, L, D] */
  CLARY_BSHD = 1  /* [B, L, H, D] */
} clary_layout;

typedef enum clary_precision {
  CLARY_EXACT = 0,    /* f32 arithmetic, whatever the input type */
  CLARY_BF16 = 1,     /* Q, K, V and P in bf16, f32 sums; CPUs that do not multiply bf16 compute exactly */
  CLARY_INT8_F16 = 2, /* INT8 QK^T with smoothing, 16-bit PV (on CPUs as CLARY_BF16) */
  CLARY_INT8 = 3,     /* INT8 QK^T with smoothing, u8 P times INT8 V */
  CLARY_INT4 = 4,     /* as INT8, with K stored in 4 bits (asymmetric, per token) */
  CLARY_AUTO = 5,     /* per head, by the rule of docs/semantics.md: exact for little work, otherwise guarded INT8 */
  CLARY_BF16X3 = 6    /* f32 as the sum of two bf16, three products (error 1e-5); CPUs without AMX compute exactly */
} clary_precision;

typedef enum clary_causal {
  CLARY_NOT_CAUSAL = 0,
  CLARY_CAUSAL_TOP_LEFT = 1,     /* query i sees keys j <= i */
  CLARY_CAUSAL_BOTTOM_RIGHT = 2, /* query i sees keys j <= i + Lk - Lq */
  CLARY_CAUSAL_OFFSET = 3        /* query i sees keys j <= i + causal_offset */
} clary_causal;

/* What to compute. Set it up with clary_attention_params_init(); `size` tells which fields the caller knows. */
typedef struct clary_attention_params {
  size_t size;
  clary_layout layout;       /* of q, k, v and out; default CLARY_BHSD */
  clary_precision precision; /* default CLARY_AUTO */
  clary_causal causal;       /* default CLARY_NOT_CAUSAL */
  int64_t causal_offset;     /* read when causal == CLARY_CAUSAL_OFFSET; may be negative */
  double softmax_scale;      /* factor of q.k, finite; default NaN = 1 / sqrt(Dk). 0 is a value */
  double softcap;            /* c > 0: scores become c * tanh(s / c); default 0 = none */
  int64_t window_left; /* query i, aligned with key a = i + offset, sees keys >= a - window_left; -1 = open (default) */
  int64_t window_right; /* ... and keys <= a + window_right; -1 = open (default) */
  /* bool or uint8 (non-zero = attend), or f32 or the inputs' type (added to the scores; -inf hides). Up to 4
   * dimensions, broadcast to [B, Hq, Lq, Lk] as in NumPy. NULL = none. */
  const clary_tensor* mask;
  const clary_tensor* alibi_slopes; /* f32 [Hq] or [B, Hq]: scores -= slope * |i + offset - j|. NULL = none */
  const clary_tensor* sinks;        /* f32 [Hq]: a logit that joins each row's denominator. NULL = none */
  /* Varlen batches: sequence s owns rows cu_seqlens[s] .. cu_seqlens[s+1] - 1. Both given or both NULL; then the
   * tensors are [1, H, T, D] / [1, T, H, D], out too, and LSE [1, Hq, Tq]. num_sequences + 1 entries, from 0,
   * ascending, ending at the total lengths. Masks are indexed [sequence, head, row in sequence, key in sequence]. */
  const int32_t* cu_seqlens_q;
  const int32_t* cu_seqlens_k;
  int64_t num_sequences;
  /* Budget for the relative L2 error of each head, > 0; default NaN = no guard. The call computes `guard_rows` rows of
   * every head exactly, compares, and repeats heads over the budget at the next precision
   * (int4 -> int8 -> int8_f16 -> exact; bf16 and bf16x3 -> exact). */
  double guard;
  int32_t guard_rows; /* sampled rows per head, 1 to 64; default 16 */
  /* CUDA tensors only (docs/gpu.md). The call enqueues its kernels on `stream` (a cudaStream_t, NULL = the legacy
   * default stream) and returns: it allocates nothing, waits for nothing and reads no device memory, and so may be
   * captured into a graph. `workspace` is device memory of clary_cuda_workspace_bytes() bytes, aligned to 64; it is the
   * call's until the stream has passed it. */
  void* stream;
  void* workspace;
  size_t workspace_bytes;
  /* With cu_seqlens, which then are device memory too and are not checked: no sequence is longer than this. */
  int64_t max_len_q;
  int64_t max_len_k;
} clary_attention_params;

CLARY_API void clary_attention_params_init(clary_attention_params* params);

/* ---- context ------------------------------------------------------------------------------------------------- */

/* Runs task(task_arg, i) for every i in 0 .. count-1, in any order, on any threads, and returns when all are done. */
typedef void (*clary_parallel_for_fn)(void* user, size_t count, void (*task)(void* task_arg, size_t i), void* task_arg);
/* Returns at least `bytes` bytes aligned to 64, or NULL. */
typedef void* (*clary_allocate_fn)(void* user, size_t bytes);
typedef void (*clary_release_fn)(void* user, void* memory, size_t bytes);

typedef struct clary_context_options {
  size_t size;
  int32_t threads; /* >= 1; default: the cores this process may use */
  /* The caller's thread pool; `threads` says how many tasks it runs at once. NULL: Clary's own threads. */
  clary_parallel_for_fn parallel_for;
  void* parallel_user;
  /* The caller's allocator for workspaces, both or neither. NULL: aligned operator new. */
  clary_allocate_fn allocate;
  clary_release_fn release;
  void* allocator_user;
  /* Instruction set by name ("avx2"), NULL: environment variable CLARY_ISA if set, else the best of this CPU. */
  const char* isa;
} clary_context_options;

CLARY_API void clary_context_options_init(clary_context_options* options);

/* Owns the threads and the workspace. After the first call of a shape, calls of that shape allocate nothing. */
typedef struct clary_context clary_context;

/* options NULL = defaults. Errors: threads < 1, an unknown or unavailable instruction set. */
CLARY_API clary_status clary_context_create(const clary_context_options* options, clary_context** context);
CLARY_API void clary_context_destroy(clary_context* context);
/* The instruction set that this context's kernels use, e.g. "avx512bf16". */
CLARY_API const char* clary_context_isa(const clary_context* context);
/* Bytes of workspace the context holds at present. */
CLARY_API size_t clary_context_workspace_bytes(const clary_context* context);

/* ---- attention ------------------------------------------------------------------------------------------------ */

/* out = softmax(softmax_scale * q k^T + ...) v for every batch and head; the exact order is in docs/semantics.md.
 *
 * q [B, Hq, Lq, Dk], k [B, Hkv, Lk, Dk], v [B, Hkv, Lk, Dv], out [B, Hq, Lq, Dv] (or the BSHD forms): one of f32, f16,
 * bf16 for q, k and v; out in that type or f32. Hq a multiple of Hkv, 1 <= Dk, Dv <= 1024. Any strides, last one 1.
 * lse: f32 [B, Hq, Lq], natural logarithm, or NULL. A row that may attend to nothing gets 0 and LSE -inf.
 * params NULL = defaults. context NULL = a default context made for this one call (slow); CUDA tensors need none. */
CLARY_API clary_status clary_attention(const clary_tensor* q, const clary_tensor* k, const clary_tensor* v,
                                       const clary_tensor* out, const clary_tensor* lse_or_null,
                                       const clary_attention_params* params, clary_context* context);

/* Merges results of the same queries over disjoint sets of keys, in the order given:
 * lse = ln sum_p exp(lses[p]), out = sum_p exp(lses[p] - lse) outs[p].
 *
 * outs: `count` >= 1 tensors [B, H, L, D] (or the BSHD form), lses: f32 [B, H, L] each, natural logarithm. out: of that
 * shape, lse: f32 [B, H, L] or NULL. Each of f32, f16 or bf16, any strides, last one 1; 1 <= D <= 1024. A part whose
 * lse is -inf adds nothing, whatever its row holds. out and lse may be one of the parts. A sink belongs into one part
 * only. context NULL = on the calling thread. */
CLARY_API clary_status clary_merge(const clary_tensor* const* outs, const clary_tensor* const* lses, int64_t count,
                                   clary_layout layout, const clary_tensor* out, const clary_tensor* lse_or_null,
                                   clary_context* context);

/* How much workspace clary_attention needs for CUDA tensors of these shapes, strides and parameters. Their data, stream
 * and workspace are not looked at. CLARY_UNSUPPORTED when this library was built without CUDA, or there is no driver,
 * or no kernel for the device. */
CLARY_API clary_status clary_cuda_workspace_bytes(const clary_tensor* q, const clary_tensor* k, const clary_tensor* v,
                                                  const clary_tensor* out, const clary_tensor* lse_or_null,
                                                  const clary_attention_params* params, size_t* bytes);

/* ---- plans: check once, run often, and look inside ------------------------------------------------------------ */

typedef struct clary_plan clary_plan;

/* Checks everything that clary_attention checks. Shapes, strides and dtypes of the tensors are remembered, their data
 * are not. What params points to (mask, slopes, sinks, cu_seqlens) and the context must outlive the plan. */
CLARY_API clary_status clary_plan_create(const clary_tensor* q, const clary_tensor* k, const clary_tensor* v,
                                         const clary_tensor* out, const clary_tensor* lse_or_null,
                                         const clary_attention_params* params, clary_context* context,
                                         clary_plan** plan);
/* Pointers to the first element of each tensor, laid out as at creation. lse NULL exactly when the plan has none. */
CLARY_API clary_status clary_plan_run(clary_plan* plan, const void* q, const void* k, const void* v, void* out,
                                      float* lse);
CLARY_API void clary_plan_destroy(clary_plan* plan);

/* Numbers about a plan. A tile is 16 query rows x 256 keys of one query head. */
typedef struct clary_plan_info {
  size_t size;
  const char* isa;           /* kernels that will run */
  clary_precision precision; /* as asked */
  clary_precision start;     /* every head starts at (CLARY_AUTO decides; few rows are exact) */
  int64_t tiles_skipped, tiles_full, tiles_partial;
  double flops;             /* 4 * visible tiles' scores * (Dk + Dv) / 2 */
  double bytes_moved;       /* read and written by this plan, caches cold */
  double bytes_lower_bound; /* each input read once and each output written once */
  double workspace_bytes;   /* what the context will hold for it */
  int64_t work_items;       /* units of parallel work */
  int64_t key_splits;       /* parts into which the keys of a row are cut and merged */
} clary_plan_info;

CLARY_API clary_status clary_plan_get_info(const clary_plan* plan, clary_plan_info* info);

/* What the guard (or CLARY_AUTO) did to one head in the last run of the plan. */
typedef struct clary_head_info {
  size_t size;
  clary_precision precision; /* the precision of the result */
  int32_t raises;            /* how often it was raised; 0 = the start precision held */
  double first_error;        /* sampled relative L2 error at the start precision; NaN = not measured */
  double last_error;         /* ... at the final precision; 0 for exact */
} clary_head_info;

CLARY_API clary_status clary_plan_get_head(const clary_plan* plan, int64_t batch, int64_t head, clary_head_info* info);

/* The plan in words: kernel and why, tiles, FLOPs, bytes, memory, and which heads the guard moved. Writes at most
 * `capacity` bytes with the final zero, returns the length without it (call with capacity 0 to ask). */
CLARY_API size_t clary_plan_describe(const clary_plan* plan, char* text, size_t capacity);

/* ---- the machine ---------------------------------------------------------------------------------------------- */

/* Instruction sets in this binary, best first: i in 0 .. clary_isa_count()-1. */
CLARY_API int clary_isa_count(void);
CLARY_API const char* clary_isa_name(int i);
/* 1 if this CPU can run it. */
CLARY_API int clary_isa_supported(int i);
/* The CPU's brand string. */
CLARY_API const char* clary_cpu_name(void);

typedef enum clary_peak {
  CLARY_PEAK_F32 = 0,  /* multiply-add of f32 */
  CLARY_PEAK_BF16 = 1, /* the instruction set's bf16 dot product, or f32 where it has none */
  CLARY_PEAK_INT8 = 2, /* its INT8 dot product */
  CLARY_PEAK_READ = 3  /* a plain sum over 256 MiB, GB/s instead of GOP/s */
} clary_peak;

/* Measures for about `seconds`, on the calling thread, how many GOP/s (2 per multiply-add; GB/s for CLARY_PEAK_READ) an
 * instruction set reaches on registers alone: what the benchmarks compare themselves with. */
CLARY_API clary_status clary_measure_peak(const char* isa, clary_peak what, double seconds, double* result);

#ifdef __cplusplus
}
#endif

#endif /* CLARY_CLARY_H */
