// The activation between the two linear layers of the feed-forward part, with the bias of the first.
//
//     a = u Phi(u),   da/du = Phi(u) + u phi(u)       u = product + bias; Phi, phi: normal distribution and density
//
// (Hendrycks & Gimpel 2016, arXiv 1606.08415: the exact form, not that with tanh.)
#pragma once
#include "parallel.h"
#include "vectors.h"

#if defined(__AVX512F__)
INLINE Floats reciprocal(Floats x, bf16) { return (Floats)_mm512_rcp14_ps((__m512)x); }  // 14 bits, where bf16 has 8
#else
INLINE Floats reciprocal(Floats x, bf16) { return 1.0f / x; }
#endif
INLINE Floats reciprocal(Floats x, float) { return 1.0f / x; }

struct GeluForward {
    int64_t threads;
    int64_t rows;
    int64_t width;      // a multiple of LANES
    void* product;      // T (rows, width): the product; afterwards da/du, which the backward pass needs
    const float* bias;  // (width)
    void* out;          // result T (rows, width): a
};

template <class T>
static void gelu_forward(const GeluForward& a) {
    parallel(a.threads, [&](int thread, int threads) {
        Share share(a.rows, thread, threads);
        for (int64_t row = share.from; row < share.to; row++) {
            T* product = (T*)a.product + row * a.width;
            T* out = (T*)a.out + row * a.width;
            for (int64_t j = 0; j < a.width; j += LANES) {
                Floats u = load(product + j) + load(a.bias + j);
                // 1 - Phi(|u|) = exp(-u^2/2) (a1 k + ... + a5 k^5) / 2, k = 1 / (1 + 0.3275911 |u| / sqrt(2)), to within
                // 7.5e-8 (Abramowitz & Stegun 1964, 7.1.26).
                Floats z = (Floats)((Ints)u & 0x7fffffff) * 0.70710678f;
                Floats e = exponential(-z * z);
                Floats k = reciprocal(z * 0.3275911f + 1.0f, T{});
                Floats p = all(1.061405429f);
                p = p * k - 1.453152027f;
                p = p * k + 1.421413741f;
                p = p * k - 0.284496736f;
                p = p * k + 0.254829592f;
                Floats tail = p * k * e * 0.5f;
                Floats distribution = select(u > 0.0f, 1.0f - tail, tail);
                store(out + j, u * distribution);
                store(product + j, distribution + u * e * 0.39894228f);  // 1 / sqrt(2 pi)
            }
        }
    });
}
EXPORT(gelu_forward, GeluForward)

struct GeluBackward {
    int64_t threads;
    int64_t rows;
    int64_t width;
    void* gradient;          // T (rows, width): that of a; afterwards that of u
    const void* derivative;  // T (rows, width): da/du
    float* partial;          // memory for (threads, width)
    float* bias_gradient;    // result (width): the sum over rows of u's gradient
};

template <class T>
static void gelu_backward(const GeluBackward& a) {
    int used = 1;
    parallel(a.threads, [&](int thread, int threads) {
        if (thread == 0) used = threads;
        Share share(a.rows, thread, threads);
        float* dbias = a.partial + thread * a.width;
        memset(dbias, 0, a.width * sizeof(float));
        for (int64_t row = share.from; row < share.to; row++) {
            T* gradient = (T*)a.gradient + row * a.width;
            const T* derivative = (const T*)a.derivative + row * a.width;
            for (int64_t j = 0; j < a.width; j += LANES) {
                Floats g = load(gradient + j) * load(derivative + j);
                store(gradient + j, g);
                store(dbias + j, load(dbias + j) + g);
            }
        }
    });
    add_partial(a.width, used, a.width, a.partial, a.bias_gradient);
}
EXPORT(gelu_backward, GeluBackward)
