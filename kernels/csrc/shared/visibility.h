// Which keys may be seen and where prompts end. `ids` are those of one batch entry's keys in key_segment, which is not
// null: 0 may be seen.
#pragma once

#include "shared/arithmetic.h"

namespace sampleattn {

// May one of the keys first, first + step, .. before `end` be seen? Threads that share a key block take every so many.
template <class Int>
SAMPLEATTN_DEVICE bool any_visible_key(int32_t const* ids, Int first, Int end, std::type_identity_t<Int> step) {
  bool seen = false;
  for (Int key = first; !seen && key < end; key += step) seen = ids[key] == 0;
  return seen;
}

// A prompt may be padded on the right: it ends behind its last row whose own key is not padding, as kernels/shared/rows.py
// has it. A row whose position has no key is not padding.
template <class Int>
SAMPLEATTN_DEVICE bool is_padding(int32_t const* ids, Int position, std::type_identity_t<Int> kv_len) {
  return position >= 0 && position < kv_len && ids[position] != 0;
}

}  // namespace sampleattn
