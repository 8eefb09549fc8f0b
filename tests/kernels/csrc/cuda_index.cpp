// The index arithmetic of the CUDA kernels, on the host: where elements lie, what each lane reads, which runs of keys a
// tile walks. Instructions are emulated as the PTX manual defines them. Exit status 1 and a message on the first error.
#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>
#include <vector>

#include "select_adaptive/cuda/arguments.h"
#include "block_sparse_attention/cuda/key_tile.h"
#include "shared/cuda/matrix_layout.h"

using namespace sampleattn;

#define REQUIRE(condition, ...)                                 \
  if (!(condition)) {                                           \
    std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
    std::printf(__VA_ARGS__);                                   \
    std::printf("\n");                                          \
    std::exit(1);                                               \
  }

// 32 lanes at once. Elements are small integers in 16 bits, so that all sums are exact.
struct EmulatedWarp {
  using Word = std::array<uint32_t, 32>;
  using Float = std::array<float, 32>;

  // Lane l of matrix i gets two elements of the row whose address lane 8 i + l / 4 gave.
  template <class Offset>
  void load(Word (&words)[4], int16_t const* tile, Offset offset) const {
    for (int i = 0; i < 4; ++i) {
      for (int lane = 0; lane < 32; ++lane) {
        int16_t const* row = tile + offset(8 * i + lane / 4);
        words[i][lane] = pair(row[lane % 4 * 2], row[lane % 4 * 2 + 1]);
      }
    }
  }

  // mma.m16n8k16: group g = lane / 4, t = lane % 4.
  void multiply(Float* c, Word const* a, Word const& b0, Word const& b1) const {
    float left[16][16], right[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      int const g = lane / 4, t = lane % 4 * 2;
      for (int i = 0; i < 4; ++i) {
        for (int e = 0; e < 2; ++e) left[g + i % 2 * 8][t + i / 2 * 8 + e] = element(a[i][lane], e);
      }
      for (int e = 0; e < 2; ++e) {
        right[t + e][g] = element(b0[lane], e);
        right[t + 8 + e][g] = element(b1[lane], e);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        for (int k = 0; k < 16; ++k) {
          c[i][lane] += left[lane / 4 + i / 2 * 8][k] * right[k][lane % 4 * 2 + i % 2];
        }
      }
    }
  }

  static uint32_t pair(int16_t low, int16_t high) { return uint16_t(low) | uint32_t(uint16_t(high)) << 16; }
  static int16_t element(uint32_t word, int index) { return int16_t(word >> (16 * index)); }
};

template <int kRows, int kColumns>
void check_layout() {
  using Tile = SharedTile<kRows, kColumns>;
  std::set<int> offsets;
  for (int row = 0; row < kRows; ++row) {
    for (int vector = 0; vector < Tile::kVectors; ++vector) {
      int const offset = Tile::offset(row, vector);
      REQUIRE(offset >= 0 && offset + kVector <= Tile::kElements && offset % kVector == 0, "%d", offset);
      REQUIRE(offsets.insert(offset).second, "two vectors at %d", offset);
    }
  }
  for (int row = 0; row < kRows; row += 8) {
    for (int vector = 0; vector < Tile::kVectors; ++vector) {
      std::set<int> banks;
      for (int i = 0; i < 8; ++i) banks.insert(Tile::offset(row + i, vector) / kVector % 8);
      REQUIRE(banks.size() == 8, "%d columns: rows %d to %d of vector %d share banks", kColumns, row, row + 7, vector);
    }
  }
}

// The products of a block of keys with each other, in 16 x 16 parts as block_representatives takes them.
template <int kHeadDim>
void check_products() {
  constexpr int kRows = 128;
  using Keys = SharedTile<kRows, kHeadDim>;
  check_layout<kRows, kHeadDim>();
  std::mt19937 random(kHeadDim);
  std::vector<std::array<int16_t, kHeadDim>> keys(kRows);
  std::vector<int16_t> tile(Keys::kElements);
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kHeadDim; ++column) {
      keys[row][column] = int16_t(random() % 7) - 3;
      tile[Keys::offset(row, column / kVector) + column % kVector] = keys[row][column];
    }
  }
  EmulatedWarp const warp;
  for (int first = 0; first < kRows; first += 16) {
    for (int other = 0; other < kRows; other += 16) {
      EmulatedWarp::Float product[8] = {};
      for (int k = 0; k < kHeadDim / 16; ++k) {
        auto offset = [&](int row, LaneVector own) { return Keys::offset(row + own.row, k * 2 + own.vector); };
        EmulatedWarp::Word a[4], b[4];
        warp.load(a, tile.data(), [&](int lane) { return offset(first, vector_of_a(lane)); });
        warp.load(b, tile.data(), [&](int lane) { return offset(other, vector_of_b(lane)); });
        warp.multiply(product, a, b[0], b[1]);
        warp.multiply(product + 4, a, b[2], b[3]);
      }
      for (int row = 0; row < 16; ++row) {
        for (int n = 0; n < 16; ++n) {
          float expected = 0;
          for (int d = 0; d < kHeadDim; ++d) expected += keys[first + row][d] * keys[other + n][d];
          float const found = product[n / 8 * 4 + row / 8 * 2 + n % 2][row % 8 * 4 + n % 8 / 2];
          REQUIRE(found == expected, "keys %d and %d: %g, not %g", first + row, other + n, found, expected);
        }
      }
    }
  }
}

// The position of a query row: blocks of 128 rows begin 128 + q_gap apart.
template <class Arguments>
int standing(Arguments const& args, int row) {
  return args.q_offset + row / 128 * (128 + args.q_gap) + row % 128;
}

// The runs of keys that a tile keeps, in order, as the producer finds them in the bits that the range leaves.
std::vector<int> kept_runs(Arguments const& args, Tile const& tile) {
  BlockRange const range = allowed_blocks(args, tile);
  std::vector<int> runs;
  for (int word = range.first / 32; word * 32 <= range.last; ++word) {
    for (uint32_t bits = allowed_word(mask_row(args, tile), range, word); bits; bits &= bits - 1) {
      int const first = (word * 32 + std::countr_zero(bits)) * args.block_k;
      for (int run = first; run < first + args.block_k; run += kKeyRun) runs.push_back(run);
    }
  }
  return runs;
}

// Every entry that the mask and the index leave is in a run that its tile walks; a run that needs no mask of positions
// or segments by its flags holds no other entry; and blocks that may have been dropped lie behind all rows.
void check_walk(std::mt19937& random) {
  auto draw = [&](int low, int high) { return int(low + random() % (high - low + 1)); };
  Arguments args{};
  args.batch = draw(1, 2);
  args.kv_heads = draw(1, 2);
  args.q_heads = args.kv_heads * draw(1, 3);
  args.q_len = draw(1, 400);
  args.kv_len = draw(1, 1500);
  args.q_offset = draw(-300, 1500);
  args.q_gap = 128 * draw(0, 2);
  args.window = draw(0, 2) == 0 ? draw(1, 900) : 0;
  args.causal = draw(0, 3) > 0;
  args.block_q = 128;
  args.block_k = draw(0, 1) ? 64 : 128;
  int const q_blocks = (args.q_len + 127) / 128, k_blocks = (args.kv_len + args.block_k - 1) / args.block_k;
  args.mask_words = (k_blocks + 31) / 32;
  args.mask_head_stride = q_blocks * args.mask_words;
  args.mask_batch_stride = args.q_heads * args.mask_head_stride;
  std::vector<uint32_t> mask(args.batch * args.mask_batch_stride);
  int const sparse = draw(0, 2);
  for (uint32_t& word : mask) word = sparse == 2 ? random() & random() & random() : sparse == 1 ? random() : ~0u;
  args.block_mask = mask.data();

  std::vector<int32_t> segment(args.kv_len);
  std::vector<SegmentRange> key_range(args.key_runs()), query_range(args.q_tiles(), {0, 0});
  if (draw(0, 1)) {  // padding at the front, and a hole
    int const begin = draw(0, args.kv_len), hole = draw(0, args.kv_len);
    for (int key = 0; key < args.kv_len; ++key) segment[key] = key < begin || key / 10 == hole / 10 ? -1 : 0;
    for (int run = 0; run < args.key_runs(); ++run) {
      key_range[run] = {1, -2};
      for (int key = run * kKeyRun; key < std::min((run + 1) * kKeyRun, args.kv_len); ++key) {
        key_range[run].lowest = std::min(key_range[run].lowest, segment[key]);
        key_range[run].highest = std::max(key_range[run].highest, segment[key]);
      }
    }
    args.key_segment = segment.data();
    args.key_range = key_range.data();
    args.query_range = query_range.data();
  }

  std::set<std::array<int, 3>> seen;
  for (int index = 0; index < args.tiles(); ++index) {
    Tile const tile = locate_tile(args, index);
    REQUIRE(tile.head / (args.q_heads / args.kv_heads) == tile.head_kv, "head %d of %d", tile.head, tile.head_kv);
    REQUIRE(seen.insert({tile.batch, tile.head, tile.row}).second, "tile %d again", index);
    int behind = 0;
    while (behind < k_blocks && std::min((behind + 1) * args.block_k, args.kv_len) - 1 <= standing(args, tile.row))
      ++behind;
    REQUIRE(blocks_behind(args, tile) == behind, "%d of %d blocks behind", blocks_behind(args, tile), behind);
    uint32_t const* words = args.block_mask + tile.batch * args.mask_batch_stride + tile.head * args.mask_head_stride +
                            tile.row / 128 * args.mask_words;
    std::vector<int> flags(args.key_runs(), -1);
    OpenKeys open{};
    open.enter(args, tile);
    int before = -1;
    for (int run : kept_runs(args, tile)) {
      REQUIRE(run % kKeyRun == 0 && run > before, "run %d after %d", run, before);
      before = run;
      int const block = run / args.block_k;
      REQUIRE(words[block / 32] >> (block % 32) & 1, "run %d of a dropped block", run);
      if (run < args.kv_len) flags[run / kKeyRun] = open.flags(args, run);
    }
    for (int row = tile.row; row < std::min(tile.row + kTileRows, args.q_len); ++row) {
      int const position = standing(args, row);
      for (int key = 0; key < args.kv_len; ++key) {
        bool const positions = (!args.causal || key <= position) && (args.window == 0 || key > position - args.window);
        int const block = key / args.block_k, flag = flags[key / kKeyRun];
        if (positions && words[block / 32] >> (block % 32) & 1) {
          REQUIRE(flag >= 0, "key %d of row %d is not walked", key, row);
        }
        if (flag < 0) continue;
        REQUIRE(positions || flag & kMaskPositions, "key %d of row %d is not masked", key, row);
        REQUIRE(segment[key] >= 0 || (flag & kMaskSegments && flag & kClearInvalidValues), "padding key %d", key);
      }
    }
    for (int run = 0; run < args.key_runs(); ++run) {
      bool const ragged = (run + 1) * kKeyRun > args.kv_len;
      REQUIRE(flags[run] < 0 || !ragged || flags[run] & kMaskPositions, "the end of run %d is not masked", run);
    }
  }
  REQUIRE(int(seen.size()) == args.batch * args.q_heads * args.q_tiles(), "%zu tiles", seen.size());
}

// Every query tile is in one item, whose steps score each forced block of the tile once, but nothing for a tile that
// keeps every block, for it holds one of the prompt's last rows; rounds reach every item once.
void check_items(std::mt19937& random) {
  auto draw = [&](int from, int to) { return std::uniform_int_distribution<int>(from, to)(random); };
  adaptive::Arguments args{};
  int32_t sinks[2], ends[2];
  args.kv_heads = draw(1, 3);
  args.q_heads = args.kv_heads * draw(1, 4);
  args.batch = draw(1, 2);
  args.q_len = draw(1, 1500);
  args.kv_len = draw(1, 1500);
  args.q_offset = draw(-300, 700);
  args.q_gap = 128 * draw(0, 2);
  args.window_slashes = draw(1, 4);
  args.last_rows = draw(0, 1) ? draw(0, args.q_len) : 0;
  args.sinks = sinks;
  args.row_ends = ends;
  args.keep_sink = draw(0, 1);
  std::vector<int32_t> segment(2 * args.kv_len);
  args.key_segment = draw(0, 1) ? segment.data() : nullptr;
  args.key_segment_stride = args.kv_len;
  for (int32_t& sink : sinks) sink = draw(0, 1) ? args.n() : draw(0, args.n() - 1);
  for (int batch = 0; batch < 2; ++batch) {  // padding on the right, and a hole
    int const valid = draw(0, args.kv_len), hole = draw(0, args.kv_len);
    auto padding = [&](int key) { return args.key_segment && (key >= valid || key / 10 == hole / 10); };
    for (int key = 0; key < args.kv_len; ++key) segment[batch * args.kv_len + key] = padding(key) ? -1 : 0;
    ends[batch] = 0;
    for (int row = 0; row < args.q_len; ++row) {
      int const key = standing(args, row);
      bool const hidden = key >= 0 && key < args.kv_len && padding(key);
      if (!hidden) ends[batch] = row + 1;
      REQUIRE(!args.key_segment || is_padding(segment.data() + batch * args.kv_len, key, args.kv_len) == hidden,
              "row %d", row);
    }
  }

  std::set<std::vector<int>> tiles;
  for (int index = 0; index < args.items(); ++index) {
    adaptive::Item const item = adaptive::locate_item(args, index);
    int const sink = args.key_segment ? sinks[item.batch] : args.keep_sink ? 0 : args.n();
    REQUIRE(item.sink == sink, "sink %d of item %d", item.sink, index);
    bool const needed = item.tile[0].scored || item.tile[1].scored;
    REQUIRE(needed || (item.own == 0 && item.behind <= item.first), "item %d scores for no tile", index);
    for (adaptive::QueryBlock const& tile : item.tile) {
      if (tile.row >= args.q_len) continue;
      bool const fresh = tiles.insert({item.batch, tile.head, tile.row}).second;
      REQUIRE(fresh && tile.head / (args.q_heads / args.kv_heads) == item.head_kv, "item %d", index);
      int const end = args.key_segment ? ends[item.batch] : args.q_len;
      bool whole = false;
      int stop = std::min(tile.row + 128, args.q_len);
      if (tile.row < end && end < stop) stop = end;
      for (int row = tile.row; row < stop; ++row) whole = whole || (row < end && row >= end - args.last_rows);
      REQUIRE(tile.stop == stop, "tile %d stops at %d", tile.row, tile.stop);
      int const first = standing(args, tile.row), last = standing(args, stop - 1);
      for (int block = 0; block < args.n(); ++block) {
        bool const allowed = block * 128 <= last;
        bool const near = first < (block + args.window_slashes) * 128;
        bool const forced = block >= tile.end || block == item.sink;
        REQUIRE(allowed == (block < tile.behind), "block %d of item %d", block, index);
        REQUIRE(forced == (whole || near || block == item.sink), "block %d of item %d", block, index);
        bool const own = (block + 1) * 128 > first;
        bool const exact = block >= tile.own && block >= item.first && block < item.behind;
        bool const estimated = block < tile.own && block < item.own;
        REQUIRE(whole || exact || !(own && allowed), "block %d of item %d", block, index);
        REQUIRE(whole || estimated == !own, "block %d of item %d", block, index);
      }
      REQUIRE(tile.scored == !whole, "row %d of item %d", tile.row, index);
    }
  }
  REQUIRE(int(tiles.size()) == args.batch * args.q_heads * args.q_blocks(), "%d tiles", int(tiles.size()));

  int const count = draw(1, 7);
  std::set<int> reached;
  for (int x = 0; x < count; ++x) {
    for (int round = 0; adaptive::item_of_round(round, x, count) < args.items(); ++round) {
      REQUIRE(reached.insert(adaptive::item_of_round(round, x, count)).second, "round %d of %d", round, x);
    }
  }
  REQUIRE(int(reached.size()) == args.items(), "%d items", int(reached.size()));
}

int main() {
  check_products<64>();
  check_products<96>();
  check_products<128>();
  check_products<192>();
  check_products<256>();
  std::mt19937 random(std::random_device{}());
  for (int i = 0; i < 500; ++i) {
    check_walk(random);
    check_items(random);
  }
}
