// Tile images: packed Q, K and V^T lie in global memory exactly as a kernel wants them in shared memory.
//
// The quantiser writes them so; the attention kernels then copy a tile as one run of bytes (cp.async, or one bulk copy
// of the TMA unit per tile), without tensor maps, address arithmetic or a driver call per shape.
//
// An image has `rows` rows of `row_bytes` (a multiple of 32), cut into panels, one after the other, for wgmma has
// swizzles of 128, 64 and 32 bytes. A panel is as wide as divides the row: 128 of 256 bytes, 64 of 192, 32 of 96.
//
//     panel 0: row 0 bytes 0..127 | row 1 bytes 0..127 | ...      panel 1: row 0 bytes 128..255 | ...
//
// Within a panel, chunks of 16 bytes are exchanged so that the 8 rows which ldmatrix or wgmma read at once, at the same
// place in each row, lie in 8 different groups of 4 banks:
//
//     128-byte rows: chunk ^= row % 8      64: chunk ^= (row / 2) % 4      32: chunk ^= (row / 4) % 2
//
// These are the 128, 64 and 32 byte modes of the wgmma descriptor.
#pragma once

#include "cuda/layout/target.h"

namespace clary::cuda {

// Every matrix instruction used here consumes 32 bytes along k: 32 x 8 bits, 64 x 4 bits or 16 x 16 bits.
inline constexpr int kStepBytes = 32;

// A row of Q or K: whole steps. (Of the dims there are, INT4 at 32 and 96 has a half step of zeros.)
CLARY_ANYWHERE int qk_row_bytes(Element e, int dim) {
  return static_cast<int>(ceil_div(dim * bits_of(e), 8 * kStepBytes)) * kStepBytes;
}

CLARY_ANYWHERE int panel_bytes(int row_bytes) { return row_bytes % 128 == 0 ? 128 : row_bytes % 64 == 0 ? 64 : 32; }

// Of a byte offset within a panel that begins at a multiple of 1024.
CLARY_ANYWHERE uint32_t swizzle(uint32_t offset, int panel) {
  const uint32_t mask = panel == 128 ? 7u : panel == 64 ? 3u : 1u;
  return offset ^ (((offset >> 7) & mask) << 4);
}

// Where byte `byte` of row `row` lies in an image of `rows` rows.
CLARY_ANYWHERE uint32_t image_offset(int rows, int row_bytes, int row, int byte) {
  const int width = panel_bytes(row_bytes);
  const int panel = byte / width;
  return static_cast<uint32_t>(panel * rows * width) +
         swizzle(static_cast<uint32_t>(row * width + byte % width), width);
}

// ---- wgmma shared-memory descriptor of a K-major operand --------------------------------------------------------
// bits 0-13 address / 16; 16-29 leading offset / 16 (ignored when swizzled: 1); 32-45 stride between groups of 8 rows /
// 16; 62-63 swizzle (1: 128 bytes, 2: 64, 3: 32). The low word holds the address, so that steps are 32-bit additions.
CLARY_ANYWHERE uint32_t descriptor_high(int row_bytes) {
  const int width = panel_bytes(row_bytes);
  return static_cast<uint32_t>(8 * width / 16) | (width == 128 ? 1u : width == 64 ? 2u : 3u) << 30;
}
CLARY_ANYWHERE uint32_t descriptor_low(uint32_t shared_address) { return (shared_address & 0x3FFFFu) >> 4 | 1u << 16; }
// Distance in the descriptor's address field from the k-step `step` to the first.
CLARY_ANYWHERE uint32_t descriptor_step(int rows, int row_bytes, int step) {
  const int width = panel_bytes(row_bytes), byte = step * kStepBytes;
  return static_cast<uint32_t>(byte / width * rows * width + byte % width) >> 4;
}

}  // namespace clary::cuda
