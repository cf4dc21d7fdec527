// Bias, dropout, residual and layer norm in one pass: what follows a linear layer in a transformer whose norms come last.
//
//     z = drop(y + bias) + r,   out = norm(z)
#pragma once
#include "norm.h"

struct AddNormForward {
    int64_t threads;
    int64_t rows;
    int64_t width;                // a multiple of 2 * LANES
    const void* product;          // T (rows, width): y
    const float* bias;            // (width)
    const float* residual;        // (rows, width): r, or an x from which r = residual_gamma * x + residual_beta
    const float* residual_gamma;  // (width), or null where the residual is r itself
    const float* residual_beta;   // (width), or null
    const float* gamma;           // (width)
    const float* beta;            // (width)
    float epsilon;                // added to the variance
    Noise noise;
    float* normalized;  // result (rows, width): x
    float* inverse;     // result (rows): 1 / deviation
    void* out;          // result T (rows, width)
    float* out_float;   // the same in float, or null
};

template <class T>
static void add_norm_forward(const AddNormForward& a) {
    const int64_t width = a.width;
    parallel(a.threads, [&](int thread, int threads) {
        Share share(a.rows, thread, threads);
        for (int64_t row = share.from; row < share.to; row++) {
            const int64_t at = row * width;
            const T* y = (const T*)a.product + at;
            const float* r = a.residual + at;
            float* x = a.normalized + at;
            Floats total = {};
            for (int64_t j = 0; j < width; j += 2 * LANES) {
                Floats kept[2];
                factors(a.noise, (a.noise.first * width + at + j) / 2, kept[0], kept[1]);
                for (int half = 0; half < 2; half++) {
                    const int64_t i = j + half * LANES;
                    Floats residual = load(r + i);
                    if (a.residual_gamma) residual = residual * load(a.residual_gamma + i) + load(a.residual_beta + i);
                    Floats z = (load(y + i) + load(a.bias + i)) * kept[half] + residual;
                    store(x + i, z);
                    total += z;
                }
            }
            a.inverse[row] = norm_row(x, width, total, a.gamma, a.beta, a.epsilon, [&](int64_t j, const Floats* out) {
                for (int half = 0; half < 2; half++) {
                    const int64_t i = at + j + half * LANES;
                    store((T*)a.out + i, out[half]);
                    if (a.out_float) store(a.out_float + i, out[half]);
                }
            });
        }
    });
}
EXPORT(add_norm_forward, AddNormForward)

// With dz the gradient of z, which is that of r, too:
//
//     dy = dz where y was kept (times the factor), else 0,   dbias = sum over rows of dy
struct AddNormBackward {
    NormBackward norm;
    void* product_gradient;  // result T (rows, width): dy
};

template <class T>
static void add_norm_backward(const AddNormBackward& arguments) {
    const NormBackward& a = arguments.norm;
    norm_backward<T>(
        a, [](int64_t, int64_t, Floats*) {},
        [&](int64_t row, int64_t j, const Floats* dz, float* dbias) {
            Floats kept[2];
            factors(a.noise, ((a.noise.first + row) * a.width + j) / 2, kept[0], kept[1]);
            for (int half = 0; half < 2; half++) {
                Floats d = dz[half] * kept[half];
                store((T*)arguments.product_gradient + row * a.width + j + half * LANES, d);
                store(dbias + half * LANES, load(dbias + half * LANES) + d);
            }
        });
}
EXPORT(add_norm_backward, AddNormBackward)
