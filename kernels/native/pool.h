// Threads that sleep between calls: parallel(n, f) runs f(0) … f(n - 1) on the caller and on them.
#pragma once
#include <pthread.h>
#include <signal.h>
#include <stdint.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

// While it lives, numbers below 1.2e-38 count as 0 on this thread. Processors take a hundred times as
// long for them, and momentum is full of them: that of a unit without gradient shrinks for ever.
class TinyIsZero {
 public:
#if defined(__x86_64__)
  TinyIsZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // results and operands
  ~TinyIsZero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  TinyIsZero() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" ::"r"(before_ | (uint64_t)1 << 24));
  }
  ~TinyIsZero() { asm volatile("msr fpcr, %0" ::"r"(before_)); }

 private:
  uint64_t before_;
#endif
};

// A caller waits only for the workers that joined it: one that is still waking up, or that another
// process keeps from its core, costs nothing. A second caller at the same time computes alone.
class Pool {
 public:
  static Pool &get();

  // How many threads compute, the caller included.
  void limit(int threads) { limit_.store(threads < 1 ? 1 : threads, std::memory_order_relaxed); }

  template <class F>
  void parallel(int64_t n, F f) {
    int64_t helpers = limit_.load(std::memory_order_relaxed) - 1;
    if (helpers > n - 1) helpers = n - 1;
    if (helpers < 1 || !calls_.try_lock()) {
      TinyIsZero mode;
      for (int64_t i = 0; i < n; i++) f(i);
      return;
    }
    std::lock_guard<std::mutex> call(calls_, std::adopt_lock);
    run(n, (int)helpers, [](void *f, int64_t i) { (*(F *)f)(i); }, &f);
  }

 private:
  using Body = void (*)(void *, int64_t);

  Pool() = default;
  void run(int64_t n, int helpers, Body body, void *argument);
  void grow(int workers);
  void loop();
  bool join(int64_t &seen);
  void work();

  std::mutex calls_, mutex_;
  std::condition_variable wake_, done_;
  std::atomic<int> limit_{1}, sleepers_{0}, finished_{0};
  std::atomic<bool> is_waiting_{false};
  // The number of the call, and in the last 16 bits how many workers may still join it.
  std::atomic<int64_t> call_{0};
  std::atomic<int64_t> next_{0};
  int workers_ = 0;
  int64_t count_ = 0;
  Body body_ = nullptr;
  void *argument_ = nullptr;
};
