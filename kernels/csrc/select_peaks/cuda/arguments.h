// What one call of select_peaks consists of: that of select_adaptive, and what totals are made of beside own keys.
#pragma once

#include "select_adaptive/cuda/arguments.h"
#include "shared/landmarks.h"

namespace sampleattn::peaks {

// Rows of the stand-ins that are for the landmarks of the prompt's first block.
constexpr int kFirstRows = 16;

struct Arguments : adaptive::Arguments {
  float log2_peak;

  // Workspace on the device.
  void* stand_ins;  // [B, Hkv, stand_in_rows, D]: landmarks of the first block, then means of every kPeakBlocks blocks
  float*
      stand_in_terms;  // [B, Hkv, stand_in_rows, 2]: log2 of the keys that it stands for, -inf: none; and their spread

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
