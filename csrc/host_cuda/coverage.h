// Counts how often each kernel and each instruction wrapper ran; those compiled in but never run stand at 0.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

namespace atrousops::host_cuda {

struct Counter {
  enum class Kind { kernel, wrapper };
  Kind kind;
  std::string name;
  int64_t runs = 0;
  Counter* next;
  Counter(Kind kind, std::string_view name);
};

// All counters, newest first.
Counter*& counters();

// A string as a template argument.
template <size_t N>
struct Name {
  char text[N];
  constexpr Name(const char (&s)[N]) { std::copy_n(s, N, text); }
};

template <Name kName, int... kVariant>
struct Wrapper {
  static inline Counter counter{Counter::Kind::wrapper,
                                (std::string(kName.text) + ... + (" " + std::to_string(kVariant)))};
};

// To be called by the host body of an instruction wrapper: executed<"cp.async", kBytes>().
template <Name kName, int... kVariant>
inline void executed() {
  ++Wrapper<kName, kVariant...>::counter.runs;
}

// "void f() [with auto Kernel = atrousops::cuda::k<float, 4>]" -> "atrousops::cuda::k<float, 4>".
constexpr std::string_view name_in(std::string_view pretty) {
  const size_t begin = pretty.find("Kernel = ");
  const size_t end = pretty.find(';', begin);
  const std::string_view rest = pretty.substr(begin + 9, end == std::string_view::npos ? end : end - begin - 9);
  return end == std::string_view::npos ? rest.substr(0, rest.rfind(']')) : rest;
}

template <auto Kernel>
std::string kernel_name() {
  return std::string(name_in(__PRETTY_FUNCTION__));
}

template <auto Kernel>
struct KernelCounter {
  static inline Counter counter{Counter::Kind::kernel, kernel_name<Kernel>()};
};

}  // namespace atrousops::host_cuda
