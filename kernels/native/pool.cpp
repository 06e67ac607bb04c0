// The one pool of the library.
#include "pool.h"

#include <chrono>
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

// Whether `done` comes true soon. A sleeping thread takes about 100 µs to wake up, which is about the
// pause between two layers.
template <class F>
static bool soon(F done) {
  auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(150);
  do {
    for (int i = 0; i < 32; i++) {
      if (done()) return true;
      pause_briefly();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

constexpr int64_t SEATS = 0xffff;

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
  if (helpers > workers_) helpers = workers_;
  body_ = body;
  argument_ = argument;
  count_ = n;
  next_.store(0, std::memory_order_relaxed);
  finished_.store(0, std::memory_order_relaxed);
  int64_t number = (call_.load(std::memory_order_relaxed) | SEATS) + 1;
  call_.store(number | helpers);
  if (sleepers_.load() > 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  work();
  int joined = helpers - (int)(call_.exchange(number) & SEATS);
  auto is_done = [&] { return finished_.load() == joined; };
  if (soon(is_done)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  is_waiting_.store(true);
  done_.wait(lock, is_done);
  is_waiting_.store(false);
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

// Take a seat in the open call, if there is one and it is not `seen`.
bool Pool::join(int64_t &seen) {
  int64_t call = call_.load();
  while ((call | SEATS) != seen && (call & SEATS) > 0)
    if (call_.compare_exchange_weak(call, call - 1)) {
      seen = call | SEATS;
      return true;
    }
  return false;
}

void Pool::loop() {
  int64_t seen = 0;
  for (;;) {
    if (!soon([&] { return join(seen); })) {
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, [&] { return join(seen); });
      sleepers_.fetch_sub(1);
    }
    work();
    finished_.fetch_add(1);
    if (is_waiting_.load()) {
      std::lock_guard<std::mutex> lock(mutex_);
      done_.notify_one();
    }
  }
}

void Pool::work() {
  TinyIsZero mode;
  for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) body_(argument_, i);
}

#ifndef SOURCE_HASH
#define SOURCE_HASH "unknown"
#endif

// What the library was built from, to tell a stale one.
EXPORT const char *denoise_source() { return SOURCE_HASH; }
EXPORT void denoise_threads(int64_t threads) { Pool::get().limit((int)threads); }
