// Which lane holds what of a matrix instruction (PTX ISA, "Matrix fragments for mma" and "for wgmma").
//
// One k-step is 32 bytes whatever the element type, and the byte maps are the same for all types, so the kernels are
// written in bytes. Lane = 4 g + t:
//
//     accumulator 16 x 8: register i: row g + 8 (i / 2), column 2 t + i % 2
//     A 16 x 32 bytes:    register r: row g + 8 (r % 2), bytes 4 t + 16 (r / 2) .. + 3
//     B 8 x 32 bytes:     register r: row (column of the product) g, bytes 4 t + 16 r .. + 3
//
// wgmma m64nNk32: warp w of the group holds rows 16 w .. 16 w + 15; its registers are those of N / 8 accumulators and
// of one A operand above.
#pragma once

#include "cuda/layout/target.h"

namespace clary::cuda {

CLARY_ANYWHERE int acc_row(int lane, int i) { return lane / 4 + 8 * ((i >> 1) & 1); }
CLARY_ANYWHERE int acc_column(int lane, int i) { return 2 * (lane % 4) + (i & 1); }
CLARY_ANYWHERE int a_row(int lane, int r) { return lane / 4 + 8 * (r & 1); }
CLARY_ANYWHERE int a_byte(int lane, int r) { return 4 * (lane % 4) + 16 * (r >> 1); }
CLARY_ANYWHERE int b_row(int lane) { return lane / 4; }
CLARY_ANYWHERE int b_byte(int lane, int r) { return 4 * (lane % 4) + 16 * r; }

// ldmatrix.x4: lane l gives the address of row l % 8 of matrix l / 8 and receives, in register q, bytes 4 (l % 4) of
// row l / 4 of matrix q. Register q then is register q of A, resp. of two B operands, rows 0-7 and 8-15.
CLARY_ANYWHERE int a_address_row(int lane) { return lane % 8 + 8 * ((lane >> 3) & 1); }
CLARY_ANYWHERE int a_address_byte(int lane) { return 16 * (lane >> 4); }
CLARY_ANYWHERE int b_address_row(int lane) { return lane % 8 + 8 * (lane >> 4); }
CLARY_ANYWHERE int b_address_byte(int lane) { return 16 * ((lane >> 3) & 1); }

// ---- from accumulators of the scores to the A operand of P V ---------------------------------------------------
// A thread owns columns 2t, 2t+1 of every 8; a 16-bit A operand wants just these, two accumulators making one k-step.
// An 8-bit one wants 4 neighbours:
//
//     column   0  1 | 2  3 | 4  5 | 6  7 | 8  9 |10 11 |12 13 |14 15
//     lane%4     0  |   1  |   2  |   3  |   0  |   1  |   2  |   3       accumulator
//     k slot   0 1 2 3 | 4 5 6 7 | 8 9 10 11 | 12 13 14 15                A operand: lane%4 = 0 | 1 | 2 | 3
//
// So the quantiser stores V^T with keys permuted inside each 16 (slot p holds key 0 1 8 9 2 3 10 11 ..., as in
// SageAttention2), and P becomes an A operand by renaming registers, without a shuffle.
CLARY_ANYWHERE int slot_of_key(int key, Element p) {
  return bits_of(p) == 16 ? key : (key & ~15) | (4 * ((key & 7) >> 1) + 2 * ((key >> 3) & 1) + (key & 1));
}
CLARY_ANYWHERE int key_of_slot(int slot, Element p) {
  return bits_of(p) == 16 ? slot : (slot & ~15) | (8 * ((slot >> 1) & 1) + 2 * ((slot & 15) >> 2) + (slot & 1));
}

// The accumulator (8 columns each) and its register that hold element `e` of register `r` of k-step `step`. A register
// has 4 elements of 8 bits or 2 of 16.
struct AccumulatorPlace {
  int tile, i;
};
CLARY_ANYWHERE AccumulatorPlace place_of_p(Element p, int step, int r, int e) {
  if (bits_of(p) == 16) return {2 * step + (r >> 1), 2 * (r & 1) + e};
  return {4 * step + 2 * (r >> 1) + (e >> 1), 2 * (r & 1) + (e & 1)};
}

// K has four scales per tile, one for the columns that a lane of a quad owns: the maximum of a row may then be taken of
// raw integers, and one factor per row and tile is all that a thread multiplies by (SageAttention2's "per thread").
inline constexpr int kKeyGroups = 4;
CLARY_ANYWHERE int group_of_key(int key) { return (key & 7) >> 1; }

}  // namespace clary::cuda
