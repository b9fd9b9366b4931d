// torch's thread pool.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace atrousops::cpu {

class FlushSubnormals {
 public:
  FlushSubnormals() : saved_(read()) { write(saved_ | kFlush); }
  ~FlushSubnormals() { write(saved_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
#if defined(__SSE2__)
  static constexpr uint64_t kFlush = 0x8040;  // MXCSR: FTZ | DAZ
  static uint64_t read() { return _mm_getcsr(); }
  static void write(uint64_t v) { _mm_setcsr(static_cast<unsigned>(v)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kFlush = uint64_t{1} << 24;  // FPCR: FZ
  static uint64_t read() {
    uint64_t v;
    asm volatile("mrs %0, fpcr" : "=r"(v));
    return v;
  }
  static void write(uint64_t v) { asm volatile("msr fpcr, %0" ::"r"(v)); }
#else
  static constexpr uint64_t kFlush = 0;
  static uint64_t read() { return 0; }
  static void write(uint64_t) {}
#endif
  uint64_t saved_;
};

// f(begin, end) over disjoint ranges, with at least `grain` iterations per worker. f must not throw.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  if (begin < end) torch::stable::parallel_for(begin, end, grain < 1 ? 1 : grain, f);
}

// The same with subnormals flushed to zero, only for the lattice: probabilities of unlikely labels contain many of
// them, and each costs a hundred cycles. Operators that PyTorch also has keep them, as PyTorch does.
template <class F>
void parallel_for_flushed(int64_t begin, int64_t end, int64_t grain, const F& f) {
  parallel_for(begin, end, grain, [&f](int64_t b, int64_t e) {
    FlushSubnormals flush;
    f(b, e);
  });
}

}  // namespace atrousops::cpu
