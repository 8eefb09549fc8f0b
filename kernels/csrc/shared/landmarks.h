// How the landmarks of a key block are chosen and counted, for all kernels in C++.
#pragma once

namespace sampleattn {

// What a landmark takes away of the other keys' squared norms in its direction: LANDMARK_TAKEN of kernels/defaults.py.
constexpr double kLandmarkTaken = 0.75;
// Landmark m is of group m % kLandmarkGroups; of a group the one that a row looks for most counts: LANDMARK_GROUPS.
constexpr int kLandmarkGroups = 3;
// Key blocks that have one normal distribution in a row's total: PEAK_BLOCKS.
constexpr int kPeakBlocks = 8;

}  // namespace sampleattn
