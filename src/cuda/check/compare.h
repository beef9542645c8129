// A GPU against the emulator of the tests, half by half: which of the two kernels of a call goes wrong, and where.
#pragma once

namespace clary::check {

// Packed arrays, then outputs, of small problems in every precision. Returns the number of problems that differ.
int compare(int* done);

}  // namespace clary::check
