// 64-bit arithmetic with overflow checks.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace atrousops::core {

// A bad argument, worded "op: argument must RULE; got GOT. REMEDY"; becomes ArgumentError in Python. If `_C` and torch
// were built with different versions of pybind11, compiled graphs raise PyTorch's RuntimeError.
struct ArgumentError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] inline void bad_value(const std::string& op, const std::string& argument, const std::string& rule,
                                   const std::string& got, const std::string& remedy = "") {
  throw ArgumentError(op + ": " + argument + " must " + rule + "; got " + got + "." +
                      (remedy.empty() ? "" : " " + remedy));
}

// Thrown by the two functions below, and reworded by callers that know the argument's name.
struct Overflow : std::overflow_error {
  Overflow() : std::overflow_error("64-bit overflow") {}
};

inline int64_t checked_mul(int64_t a, int64_t b) {
  int64_t r;
  if (__builtin_mul_overflow(a, b, &r)) throw Overflow();
  return r;
}
inline int64_t checked_add(int64_t a, int64_t b) {
  int64_t r;
  if (__builtin_add_overflow(a, b, &r)) throw Overflow();
  return r;
}

// Quotients rounded down and up, for b > 0 and any sign of a.
inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b > 0); }

}  // namespace atrousops::core
