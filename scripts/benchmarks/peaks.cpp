// What the processor can do at most: float32 multiply-adds that stay in registers, and STREAM's triad
// a = b + s·c, whose maps fit no cache. Prints GFLOP/s and GB/s of the best of five passes.
//     peaks THREADS STEPS MIB     multiply-adds a register, size of each map
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES)));
constexpr int REGISTERS = 12;  // enough to hide the latency: 4 or 5 cycles, two a cycle
volatile float source = 0.5f;  // as far as the compiler knows, every reading differs
volatile Vector sink;

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Return the seconds from the first thread's start to the last one's end, the least of five passes.
static double seconds(int threads, const std::function<void(int)>& work) {
    double best = 1e30;
    for (int pass = 0; pass < 6; pass++) {  // the first one touches the memory
        std::vector<double> starts(threads), ends(threads);
        std::vector<std::thread> running;
        std::atomic<int> waiting{threads};
        for (int t = 0; t < threads; t++)
            running.emplace_back([&, t] {
                for (waiting--; waiting > 0;) std::this_thread::yield();
                starts[t] = now();
                work(t);
                ends[t] = now();
            });
        for (auto& thread : running) thread.join();
        double passed = *std::max_element(ends.begin(), ends.end()) -
                        *std::min_element(starts.begin(), starts.end());
        if (pass > 0) best = std::min(best, passed);
    }
    return best;
}

static void multiply_add(long steps) {
    Vector sums[REGISTERS], factor = Vector{} + 0.999f, term = Vector{} + 0.001f;
    for (auto& sum : sums) sum = Vector{} + source;
    for (long step = 0; step < steps; step++) {
#pragma GCC unroll 12
        for (int r = 0; r < REGISTERS; r++) sums[r] = sums[r] * factor + term;
    }
    for (auto& sum : sums) sink = sum;
}

static void triad(float* __restrict a, const float* __restrict b, const float* __restrict c, long n) {
    for (long i = 0; i < n; i++) a[i] = b[i] + 0.5f * c[i];
}

int main(int, char** arguments) {
    int threads = std::atoi(arguments[1]);
    long steps = std::atol(arguments[2]), part = (std::atol(arguments[3]) << 18) / threads;
    double flops = 2.0 * REGISTERS * LANES * steps * threads;
    double computing = seconds(threads, [&](int) { multiply_add(steps); });
    std::unique_ptr<float[]> a(new float[part * threads]), b(new float[part * threads]()),
        c(new float[part * threads]());
    double copying = seconds(threads, [&](int t) {
        triad(a.get() + t * part, b.get() + t * part, c.get() + t * part, part);
    });
    std::printf("%.2f %.2f\n", flops / computing / 1e9, 12.0 * part * threads / copying / 1e9);
}
