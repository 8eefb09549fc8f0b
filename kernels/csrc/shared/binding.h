// From an op's schema and a struct of its arguments to what torch registers. Fields are the schema's arguments, in order;
// what is not a tensor may be grouped in a struct of its own.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

namespace sampleattn {

using torch::stable::Tensor;

// The type of argument `index` of a schema such as "(Tensor query, Tensor? key_segment, int window) -> Tensor".
constexpr std::string_view type_in_schema(std::string_view schema, size_t index) {
  size_t begin = 1;
  for (; index > 0; --index) begin = schema.find(", ", begin) + 2;
  return schema.substr(begin, schema.find(' ', begin) - begin);
}

constexpr size_t arguments_in_schema(std::string_view schema) {
  size_t count = 1;
  for (char const c : schema.substr(0, schema.find(')'))) count += c == ',';
  return count;
}

template <class Call, size_t index>
constexpr auto example_of_argument() {
  constexpr std::string_view type = type_in_schema(Call::kSchema, index);
  if constexpr (type == "Tensor") {
    return std::type_identity<Tensor>{};
  } else if constexpr (type == "Tensor?") {
    return std::type_identity<std::optional<Tensor>>{};
  } else if constexpr (type == "int") {
    return std::type_identity<int64_t>{};
  } else if constexpr (type == "float") {
    return std::type_identity<double>{};
  } else {
    static_assert(type == "bool");
    return std::type_identity<bool>{};
  }
}

template <class Call, size_t index>
using ArgumentOf = typename decltype(example_of_argument<Call, index>())::type;

template <class Call, auto run, class Indices>
struct Unpacked;

template <class Call, auto run, size_t... indices>
struct Unpacked<Call, run, std::index_sequence<indices...>> {
  static auto call(ArgumentOf<Call, indices>... arguments) { return run(Call{std::move(arguments)...}); }
};

// Registers run(Call), which returns a tensor or a tuple of tensors, as the op's implementation.
template <class Call, auto run, class Library>
void implement(Library& library, char const* op) {
  using Function = Unpacked<Call, run, std::make_index_sequence<arguments_in_schema(Call::kSchema)>>;
  library.impl(op, TORCH_BOX((&Function::call)));
}

template <class Call, class Library>
void define(Library& library, char const* op) {
  library.def((std::string(op) + Call::kSchema).c_str());
}

}  // namespace sampleattn
