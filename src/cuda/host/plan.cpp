#include "cuda/host/plan.h"

#include <cinttypes>
#include <cmath>

#include "core/arena.h"
#include "core/status.h"

namespace clary::cuda {
namespace {

constexpr int64_t kMostGridX = (int64_t{1} << 31) - 1, kMostGridY = 65535;
constexpr int64_t kCacheBytes = 24 << 20;                   // of K and V at a time: half of the L2 of an H100
constexpr int64_t kMostLength = (int64_t{1} << 31) - 1024;  // positions in a tile stay within 32 bits

Type type_of(DType type) {
  switch (type) {
    case DType::f32: return Type::f32;
    case DType::f16: return Type::f16;
    case DType::bf16: return Type::bf16;
    case DType::boolean: break;
  }
  return Type::boolean;
}

const Instance* find(std::span<const Instance> instances, Element qk, Element pv, int64_t dim) {
  const Instance* best = nullptr;
  for (const Instance& i : instances)
    if (i.qk == qk && i.pv == pv && i.dim >= dim && (best == nullptr || i.dim < best->dim)) best = &i;
  return best;
}

// auto: below this many keys, quantising costs more than it saves.
constexpr int64_t kFewKeys = 512;

clary_precision resolve(const Problem& p) {
  if (p.precision != CLARY_AUTO) return p.precision;
  if (p.max_len_k >= kFewKeys && p.max_len_q >= 64) return CLARY_INT8;
  return p.dtype == DType::f32 ? CLARY_INT8_F16 : CLARY_EXACT;
}

// FP8 P V where the architecture has it, 16-bit otherwise. INT4 on an architecture without 4-bit products keeps Q in 8
// bits and K's 16 levels in bytes.
clary_status choose(const Problem& p, std::span<const Instance> instances, const char* device, CudaPlan& plan) {
  const int64_t dim = p.dim_qk > p.dim_v ? p.dim_qk : p.dim_v;
  const clary_precision precision = resolve(p);
  const auto first_of = [&](std::initializer_list<std::pair<Element, Element>> pairs) {
    for (const auto& [qk, pv] : pairs)
      if (const Instance* found = find(instances, qk, pv, dim); found != nullptr) return found;
    return static_cast<const Instance*>(nullptr);
  };
  using E = Element;
  switch (precision) {
    case CLARY_EXACT:
      if (p.dtype == DType::f32)
        return fail(CLARY_UNSUPPORTED,
                    "precision: CLARY_EXACT of f32 tensors is not served on CUDA devices; CLARY_BF16 rounds them");
      plan.instance = p.dtype == DType::f16 ? first_of({{E::f16, E::f16}}) : first_of({{E::bf16, E::bf16}});
      break;
    case CLARY_BF16: plan.instance = first_of({{E::bf16, E::bf16}}); break;
    case CLARY_BF16X3:
      return fail(CLARY_UNSUPPORTED,
                  "precision: CLARY_BF16X3 is not served on CUDA devices; CLARY_EXACT takes f16 and bf16 tensors");
    case CLARY_INT8_F16: plan.instance = first_of({{E::s8, E::f16}}); break;
    case CLARY_INT4:
      plan.instance = first_of({{E::s4, E::e4m3}, {E::s4, E::f16}, {E::s8, E::e4m3}, {E::s8, E::f16}});
      break;
    case CLARY_INT8:
    case CLARY_AUTO: plan.instance = first_of({{E::s8, E::e4m3}, {E::s8, E::f16}}); break;
  }
  if (plan.instance == nullptr)
    return fail(CLARY_UNSUPPORTED, "q: head dim %" PRId64 " (v: %" PRId64 ") has no kernel on %s; the largest is 256",
                p.dim_qk, p.dim_v, device);
  plan.quantise.q_levels = plan.instance->qk == E::s4 ? 7 : 127;
  plan.quantise.k_levels = precision == CLARY_INT4 ? 7 : 127;
  plan.quantise.smooth_q = plan.instance->qk == E::s4;
  return CLARY_OK;
}

clary_status check_sizes(const Problem& p) {
  if (p.len_q > kMostLength || p.len_k > kMostLength)
    return fail(CLARY_UNSUPPORTED, "%s: length is more than %" PRId64, p.len_q > kMostLength ? "q" : "k", kMostLength);
  if (p.guard > 0) return fail(CLARY_UNSUPPORTED, "guard: is not served on CUDA devices");
  if (p.sequences * p.heads_q > kMostGridY)
    return fail(CLARY_UNSUPPORTED, "q: batch size times heads is %" PRId64 ", at most %" PRId64 " on CUDA devices",
                p.sequences * p.heads_q, kMostGridY);
  return CLARY_OK;
}

Geometry geometry(const Problem& p, const Instance& instance) {
  Geometry g{};
  g.sequences = static_cast<int32_t>(p.sequences);
  g.heads_q = static_cast<int32_t>(p.heads_q), g.heads_kv = static_cast<int32_t>(p.heads_kv);
  g.group = static_cast<int32_t>(p.group);
  g.len_q = static_cast<int32_t>(p.len_q), g.len_k = static_cast<int32_t>(p.len_k);
  g.max_len_q = static_cast<int32_t>(p.max_len_q), g.max_len_k = static_cast<int32_t>(p.max_len_k);
  g.dim_qk = static_cast<int32_t>(p.dim_qk), g.dim_v = static_cast<int32_t>(p.dim_v), g.dim = instance.dim;
  g.tile_rows = instance.tile_rows, g.tile_keys = instance.tile_keys;
  const int64_t head_bytes = larger(1, g.max_len_k) * instance.dim * (bits_of(instance.qk) + bits_of(instance.pv)) / 8;
  g.heads_together = static_cast<int32_t>(smaller(larger(1, kCacheBytes / head_bytes) * g.group, kMostGridY));
  g.cu_q = p.cu_seqlens_q, g.cu_k = p.cu_seqlens_k;
  return g;
}

Visibility visibility(const Problem& p) {
  const Align align = p.causal == CLARY_CAUSAL_TOP_LEFT ? Align::top_left
                      : p.causal == CLARY_CAUSAL_OFFSET ? Align::offset
                                                        : Align::bottom_right;
  return {p.causal != CLARY_NOT_CAUSAL, align, p.causal_offset, p.window_left, p.window_right};
}

InputParams input(const void* data, const Strides& strides, DType type) {
  const int64_t per_vector = 16 / size_bytes(type);
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && strides.batch % per_vector == 0 &&
                       strides.head % per_vector == 0 && strides.row % per_vector == 0;
  return {data, strides.batch, strides.head, strides.row, aligned};
}

OutputParams output(const Problem& p, const Tensors& t) {
  const bool pairs =
      reinterpret_cast<uintptr_t>(t.out) % 4 == 0 && p.out.batch % 2 == 0 && p.out.head % 2 == 0 && p.out.row % 2 == 0;
  return {t.out,     type_of(p.out_dtype),        pairs,       p.out.batch, p.out.head,
          p.out.row, p.has_lse ? t.lse : nullptr, p.lse.batch, p.lse.head,  p.lse.row};
}

// Packed arrays and partial sums. Varlen batches take up to one tile more per sequence than they need (tiles.h).
void lay_out(const Geometry& g, const Instance& instance, Arena& arena, CudaPlan& plan) {
  QuantiseParams& q = plan.quantise;
  const int64_t query_tiles = g.heads_q * g.query_tiles(), key_tiles = g.heads_kv * g.key_tiles();
  const int64_t qk_row = qk_row_bytes(instance.qk, g.dim), heads = int64_t{g.sequences} * g.heads_kv;
  q.q_image = arena.take<uint8_t>(query_tiles * g.tile_rows * qk_row);
  q.k_image = arena.take<uint8_t>(key_tiles * g.tile_keys * qk_row);
  q.v_image = arena.take<uint8_t>(key_tiles * g.tile_keys * g.dim * bits_of(instance.pv) / 8);
  q.bad_tile = arena.take<uint8_t>(key_tiles);
  q.bad_key = arena.take<uint8_t>(key_tiles * g.tile_keys);
  q.v_scale = arena.take<float>(heads * g.dim);
  q.v_centre = arena.take<float>(heads * g.dim);
  if (!smooths(q)) return;
  q.q_scale = arena.take<float>(query_tiles * g.tile_rows);
  q.q_shift = arena.take<float>(query_tiles * g.tile_rows);
  q.k_scale = arena.take<float>(key_tiles * 4);
  for (float** sums : {&q.k_sum, &q.v_sum, &q.v_least, &q.v_largest})
    *sums = arena.take<float>(heads * kChunks * g.dim);
  if (!q.smooth_q) return;
  q.q_sum = arena.take<float>(int64_t{g.sequences} * g.heads_q * kChunks * g.dim);
  q.k_bias = arena.take<float>(g.heads_q * g.key_tiles() * g.tile_keys);
}

void plan_mask(const Problem& p, const Geometry& g, Arena& arena, CudaPlan& plan) {
  if (p.mask.kind == Mask::Kind::none) return;
  MaskParams& m = plan.attention.mask;
  m = {p.mask.data, type_of(p.mask.dtype), p.mask.batch, p.mask.head, p.mask.query, p.mask.key, nullptr, 0, 0, 0};
  const int64_t key_tiles = ceil_div(p.max_len_k, g.tile_keys);
  const int64_t query_tiles = p.mask.query == 0 ? 1 : ceil_div(p.max_len_q, g.tile_rows);
  const int64_t heads = p.mask.head == 0 ? 1 : p.heads_q, batches = p.mask.batch == 0 ? 1 : p.sequences;
  m.class_query = p.mask.query == 0 ? 0 : key_tiles;
  m.class_head = p.mask.head == 0 ? 0 : query_tiles * key_tiles;
  m.class_batch = p.mask.batch == 0 ? 0 : heads * query_tiles * key_tiles;
  uint8_t* const classes = arena.take<uint8_t>(batches * heads * query_tiles * key_tiles);
  m.classes = classes;
  plan.classes = {m, classes, g.max_len_q, g.max_len_k, g.tile_rows, g.tile_keys, static_cast<int32_t>(heads)};
  plan.survey = {key_tiles, query_tiles, batches * heads};
  plan.has_classes = key_tiles > 0 && query_tiles > 0;
}

void fill_attention(const Problem& p, const Tensors& t, CudaPlan& plan) {
  AttentionParams& a = plan.attention;
  const QuantiseParams& q = plan.quantise;
  a.shape = q.shape, a.sees = visibility(p);
  a.q = q.q_image, a.k = q.k_image, a.v = q.v_image;
  a.q_scale = q.q_scale, a.q_shift = q.q_shift, a.k_scale = q.k_scale, a.k_bias = q.k_bias;
  a.bad_tile = q.bad_tile, a.bad_key = q.bad_key, a.v_scale = q.v_scale, a.v_centre = q.v_centre;
  a.score_scale = std::abs(p.softmax_scale) * kLog2E;
  a.softcap = p.softcap * kLog2E;
  a.slopes = p.alibi_slopes, a.slope_batch = p.alibi_batch, a.slope_head = p.alibi_head;
  a.sinks = p.sinks, a.sink_head = p.sinks_head;
  a.out = output(p, t);
}

}  // namespace

clary_status check_workspace(const Device& device, size_t needed) {
  if (device.workspace == nullptr || device.workspace_bytes < needed)
    return fail(CLARY_INVALID_ARGUMENT, "workspace: has %zu bytes, needs %zu (clary_cuda_workspace_bytes)",
                device.workspace == nullptr ? size_t{0} : device.workspace_bytes, needed);
  if (reinterpret_cast<uintptr_t>(device.workspace) % 64 != 0)
    return fail(CLARY_INVALID_ARGUMENT, "workspace: %p is not aligned to 64 bytes", device.workspace);
  return CLARY_OK;
}

bool is_empty(const Problem& p) { return p.sequences == 0 || p.heads_q == 0 || p.len_q == 0 || p.max_len_q == 0; }

clary_status make_cuda_plan(const Problem& p, const Tensors& t, std::span<const Instance> instances, const char* device,
                            void* workspace, CudaPlan& plan) {
  plan = {};
  CLARY_TRY(check_sizes(p));
  CLARY_TRY(choose(p, instances, device, plan));
  const Instance& instance = *plan.instance;
  QuantiseParams& q = plan.quantise;
  q.shape = geometry(p, instance);
  q.q = input(t.q, p.q, p.dtype), q.k = input(t.k, p.k, p.dtype), q.v = input(t.v, p.v, p.dtype);
  q.type = type_of(p.dtype), q.qk = instance.qk, q.pv = instance.pv;
  q.softmax_scale = p.softmax_scale;
  Arena arena = workspace == nullptr ? Arena() : Arena(workspace);
  lay_out(q.shape, instance, arena, plan);
  plan_mask(p, q.shape, arena, plan);
  plan.workspace_bytes = arena.used_bytes();
  fill_attention(p, t, plan);
  plan.has_statistics = smooths(q);
  plan.statistics = {kChunks, p.sequences * (q.smooth_q ? p.heads_q : p.heads_kv), q.smooth_q ? 3 : 2};
  const int64_t tiles = larger(ceil_div(p.max_len_q, instance.tile_rows), ceil_div(p.max_len_k, instance.tile_keys));
  plan.pack = {tiles, p.sequences * p.heads_q, 2};
  plan.pack_shared_bytes = static_cast<int>(PackShared(0, q).bytes);
  plan.items = work_items(q.shape);
  if (plan.items > kMostGridX)
    return fail(CLARY_UNSUPPORTED, "q: %" PRId64 " tiles of queries are too many for one launch", plan.items);
  if (plan.survey.y > kMostGridY || plan.survey.z > kMostGridY)
    return fail(CLARY_UNSUPPORTED, "mask: %" PRId64 " x %" PRId64 " tiles and planes are too many for one launch",
                plan.survey.y, plan.survey.z);
  return CLARY_OK;
}

}  // namespace clary::cuda
