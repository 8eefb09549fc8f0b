// Heads in groups whose packed keys and values fit together: what all ops do that score whole prompts.
#pragma once

#include <algorithm>
#include <cstdint>

#include "shared/cpu/isa.h"
#include "shared/cpu/strip_sums.h"
#include "shared/cpu/types.h"
#include "shared/cpu/work.h"

namespace sampleattn::cpu {

// Consecutive (batch, KV head) pairs; `pair` counts from the first of them.
struct HeadGroup {
  const Sizes& sizes;
  int64_t first, count;

  int64_t batch(int64_t pair) const { return (first + pair) / sizes.kv_heads; }
  int64_t kv_head(int64_t pair) const { return (first + pair) % sizes.kv_heads; }
};

// How many pairs are packed at a time: about 4 MiB, for fresh memory costs a page fault every 4 KiB, about as much as
// packing; more where a group would have few items of work, so that threads end together.
inline int64_t pairs_of_a_group(const Sizes& sizes, int64_t floats_of_a_pair, int64_t items_of_a_pair,
                                int64_t threads) {
  constexpr int64_t kFloats = int64_t{1} << 20, kItemsPerThread = 8;
  const int64_t by_size = kFloats / std::max<int64_t>(floats_of_a_pair, 1);
  const int64_t by_threads = ceil_div(kItemsPerThread * threads, items_of_a_pair);
  return std::clamp<int64_t>(std::max(by_size, by_threads), 1, sizes.batch * sizes.kv_heads);
}

template <class Work>
void for_each_head_group(const Sizes& sizes, int64_t pairs, const Work& work) {
  const int64_t all = sizes.batch * sizes.kv_heads;
  for (int64_t first = 0; first < all; first += pairs) work(HeadGroup{sizes, first, std::min(pairs, all - first)});
}

// Packed keys of a group's pairs.
class PackedKeys {
 public:
  PackedKeys(const Sizes& sizes, int64_t pairs)
      : blocks(sizes.key_blocks()), floats_(sizes.head_dim * sizes.block_k), keys_(pairs * blocks * floats_) {}

  float* key(int64_t pair, int64_t block) const { return keys_.get() + (pair * blocks + block) * floats_; }

  void pack(const Isa& isa, const HeadGroup& group, const View& key, const KeySegments& segments, int64_t pair,
            int64_t block) const {
    pack_key_block(isa, group.sizes, key, segments, group.batch(pair), group.kv_head(pair), block,
                   this->key(pair, block));
  }

  int64_t blocks;

 private:
  int64_t floats_;
  Buffer keys_;
};

// make_worker() is called once a thread and returns a function of a pair, one of its `heads` parts, and a query block.
// Late query blocks have the most blocks behind them: they come first.
template <class ParallelFor, class MakeWorker>
void for_each_query_block(const ParallelFor& parallel_for, int64_t threads, const HeadGroup& group, int64_t heads,
                          const MakeWorker& make_worker) {
  const int64_t all_heads = group.count * heads, query_blocks = group.sizes.query_blocks();
  for_each_item(parallel_for, threads, all_heads * query_blocks, [&] {
    return [&, work = make_worker()](int64_t item) mutable {
      const int64_t head = item % all_heads;
      work(head / heads, head % heads, query_blocks - 1 - item / all_heads);
    };
  });
}

}  // namespace sampleattn::cpu
