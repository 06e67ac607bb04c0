// Threads that sleep between calls: parallel(n, f) runs f(0) … f(n - 1) on the caller and on them.
#pragma once
#include <pthread.h>
#include <signal.h>
#include <stdint.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

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
