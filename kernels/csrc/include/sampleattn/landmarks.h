// How the landmarks of a key block are chosen, for all kernels in C++.
#pragma once

namespace sampleattn {

// What a landmark takes away of the other keys' squared norms in its direction: LANDMARK_TAKEN of kernels/defaults.py.
constexpr double kLandmarkTaken = 0.75;

}  // namespace sampleattn
