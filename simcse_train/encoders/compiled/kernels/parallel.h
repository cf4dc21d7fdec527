// Threads: those of the OpenMP library that torch has loaded, so that there is one pool and not two.
//
// The kernels call its entry points directly. They are the same in GCC's, LLVM's and Intel's library, and no compiler
// needs a flag or a library for them.
#pragma once
#include <cstdint>

extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_thread_num(void);
int omp_get_num_threads(void);
}

// Calls body(thread, threads) on up to `most` threads and returns when all are done.
template <class Body>
static void parallel(int64_t most, Body body) {
    auto call = [](void* data) { (*static_cast<Body*>(data))(omp_get_thread_num(), omp_get_num_threads()); };
    GOMP_parallel(call, &body, unsigned(most), 0);
}

// The part of n items that a thread takes. Only n and the number of threads decide it: sums are taken in the same order
// in every run with as many threads.
struct Share {
    int64_t from, to;
    Share(int64_t n, int thread, int threads) : from(n * thread / threads), to(n * (thread + 1) / threads) {}
};

// Adds what each thread has summed up: to[j] = sum over threads of partial[thread * stride + j].
static inline void add_partial(int64_t n, int threads, int64_t stride, const float* partial, float* to) {
    for (int64_t j = 0; j < n; j++) {
        float total = 0;
        for (int thread = 0; thread < threads; thread++) total += partial[thread * stride + j];
        to[j] = total;
    }
}

// A kernel for both types of states, under names that Python finds.
#define EXPORT(kernel, Arguments)                                                      \
    extern "C" void kernel##_bf16(const Arguments* a) { kernel<bf16>(*a); }            \
    extern "C" void kernel##_float(const Arguments* a) { kernel<float>(*a); }
// A kernel in which no states occur.
#define EXPORT_ONE(kernel, Arguments) extern "C" void kernel##_float(const Arguments* a) { kernel(*a); }
