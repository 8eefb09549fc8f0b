// What one call of select_peaks consists of: that of select_adaptive, and what totals are made of beside own keys.
#pragma once

#include "select_adaptive/cuda/arguments.h"
#include "shared/landmarks.h"

namespace sampleattn::peaks {

// Rows of the stand-ins that are for the landmarks of the prompt's first block.
constexpr int kFirstRows = 16;

struct Arguments : adaptive::Arguments {
  float log2_peak;

  // Workspace on the device. Stand-ins [B, Hkv, stand_in_rows, D] are the landmarks of the first block, and of every
  // kPeakBlocks blocks the mean less the head's common key; their terms [B, Hkv, stand_in_rows, 2] are log2 of the keys
  // that they stand for, -inf for none, and the spread of these.
  void* stand_ins;
  float* stand_in_terms;

  constexpr int stand_in_rows() const { return (kFirstRows + n() / kPeakBlocks + kBlock - 1) / kBlock * kBlock; }
};

// The first key block with a key that may be seen; n if none is.
SAMPLEATTN_DEVICE int first_block(Arguments const& args, int batch) {
  return args.key_segment ? args.sinks[args.visibilities() > 1 ? batch : 0] : 0;
}

// Tiles of stand-ins that rows count whose query block's own keys come behind `own` blocks.
SAMPLEATTN_DEVICE int stand_in_tiles(int own) {
  return own > 0 ? (kFirstRows + own / kPeakBlocks + kBlock - 1) / kBlock : 0;
}

}  // namespace sampleattn::peaks
