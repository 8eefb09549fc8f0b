// Compile-time shape of the kernel that scores sampled rows, and the shared memory it needs.
#pragma once

#include <cute/tensor.hpp>

#include "select_budget/cuda/arguments.h"
#include "shared/sm90/stages.h"

namespace sampleattn::sm90::budget {

using namespace cute;
using namespace sampleattn::budget;
using Arguments = sampleattn::budget::Arguments;

template <class Element_, int kHeadDim_>
struct Config {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kConsumers = kHeadDim <= 128 ? 4 : 2;  // warp groups, each with a strip of rows
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kStages = kHeadDim <= 64 ? 6 : kHeadDim <= 128 ? 4 : kHeadDim <= 192 ? 3 : 2;
  // Together what the launch gives a thread: 96 of 640 threads, 168 of 384.
  static constexpr int kProducerRegisters = kConsumers == 4 ? 24 : 56;
  static constexpr int kConsumerRegisters = kConsumers == 4 ? 112 : 224;
  // Columns that one swizzled row of shared memory holds: 128 bytes, or 64 where the head dim asks for it.
  static constexpr int kChunk = kHeadDim % 64 == 0 ? 64 : 32;
  static constexpr int kKeyElements = kBlock * kHeadDim;
  static constexpr int kKeyBytes = kKeyElements * 2;

  using Atom = std::conditional_t<kChunk == 64, GMMA::Layout_K_SW128_Atom<Element>, GMMA::Layout_K_SW64_Atom<Element>>;
  using LayoutQ = decltype(tile_to_shape(Atom{}, Shape<Int<kStripRows>, Int<kHeadDim>, Int<kConsumers>>{}));
  using LayoutK = decltype(tile_to_shape(Atom{}, Shape<Int<kBlock>, Int<kHeadDim>, Int<kStages>>{}));
  using Mma =
      decltype(make_tiled_mma(GMMA::ss_op_selector<Element, Element, float, Shape<_64, Int<kBlock>, Int<kHeadDim>>>()));
};

template <class C>
struct SharedStorage {
  alignas(1024) array_aligned<typename C::Element, cosize_v<typename C::LayoutQ>, 1024> query;
  alignas(1024) array_aligned<typename C::Element, cosize_v<typename C::LayoutK>, 1024> key;
  Barrier key_barrier[C::kStages];
};

}  // namespace sampleattn::sm90::budget
