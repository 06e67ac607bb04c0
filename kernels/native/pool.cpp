// The one pool of the library.
#include "pool.h"

#include <new>
#include <system_error>

#include "simd.h"

static void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

Pool &Pool::get() {
  // Never destroyed: its threads outlive static destructors. After a fork it begins anew, since
  // threads do not survive one.
  alignas(Pool) static char memory[sizeof(Pool)];
  static Pool *pool = [] {
    pthread_atfork(nullptr, nullptr, [] {
      int threads = ((Pool *)memory)->limit_.load();
      (new (memory) Pool)->limit(threads);
    });
    return new (memory) Pool;
  }();
  return *pool;
}

void Pool::run(int64_t n, int helpers, Body body, void *argument) {
  if (workers_ < helpers) grow(helpers);
  body_ = body;
  argument_ = argument;
  count_ = n;
  next_.store(0, std::memory_order_relaxed);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    joinable_ = helpers;
    epoch_.fetch_add(1, std::memory_order_release);
  }
  if (helpers == workers_) {
    wake_.notify_all();
  } else {
    for (int i = 0; i < helpers; i++) wake_.notify_one();
  }
  work();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    joinable_ = 0;
  }
  for (int i = 0; i < SPINS; i++) {
    if (running_.load(std::memory_order_acquire) == 0) return;
    pause_briefly();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [this] { return running_.load(std::memory_order_acquire) == 0; });
}

void Pool::grow(int workers) {
  // Signals are for Python's threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (; workers_ < workers; workers_++) std::thread([this] { loop(); }).detach();
  } catch (const std::system_error &) {
    // No more threads to be had: those that there are do the work.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Pool::loop() {
  int seen = 0;
  for (;;) {
    for (int i = 0; i < SPINS && epoch_.load(std::memory_order_acquire) == seen; i++) pause_briefly();
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return epoch_.load(std::memory_order_relaxed) != seen; });
      seen = epoch_.load(std::memory_order_relaxed);
      if (joinable_ == 0) continue;
      joinable_--;
      running_.fetch_add(1, std::memory_order_relaxed);
    }
    work();
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::lock_guard<std::mutex> lock(mutex_);
      done_.notify_one();
    }
  }
}

void Pool::work() {
  for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) body_(argument_, i);
}

#ifndef SOURCE_HASH
#define SOURCE_HASH "unknown"
#endif

// What the library was built from, to tell a stale one.
EXPORT const char *denoise_source() { return SOURCE_HASH; }
EXPORT void denoise_threads(int64_t threads) { Pool::get().limit((int)threads); }
