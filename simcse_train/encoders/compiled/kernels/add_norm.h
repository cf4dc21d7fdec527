// Bias, dropout, residual and layer norm in one pass: what follows a linear layer in a transformer whose norms come last.
//
//     z = drop(y + bias) + r,   out = norm(z)
#pragma once
#include "noise.h"
#include "norm.h"
#include "parallel.h"

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

// With dz the gradient of z (norm.h), which is that of r, too:
//
//     dy = dz where y was kept (times the factor), else 0,   dbias = sum over rows of dy
struct AddNormBackward {
    int64_t threads;
    int64_t rows;
    int64_t width;
    const float* gradient;        // (rows, width): that of out, or null for zeros
    const void* gradient_more;    // T (rows, width), added to it; or null
    const float* normalized;      // (rows, width): x
    const float* inverse;         // (rows)
    const float* gamma;           // (width)
    Noise noise;                  // that of the forward pass
    float* partial;               // memory for (threads, 3, width)
    float* residual_gradient;     // result (rows, width): dz
    void* product_gradient;       // result T (rows, width): dy
    float* gamma_gradient;        // result (width)
    float* beta_gradient;         // result (width)
    float* bias_gradient;         // result (width)
};

template <class T>
static void add_norm_backward(const AddNormBackward& a) {
    const int64_t width = a.width;
    int used = 1;
    parallel(a.threads, [&](int thread, int threads) {
        if (thread == 0) used = threads;
        Share share(a.rows, thread, threads);
        float* dgamma = a.partial + thread * 3 * width;
        float *dbeta = dgamma + width, *dbias = dbeta + width;
        memset(dgamma, 0, 3 * width * sizeof(float));
        for (int64_t row = share.from; row < share.to; row++) {
            const int64_t at = row * width;
            const float* gradient = a.gradient ? a.gradient + at : nullptr;
            const T* more = a.gradient_more ? (const T*)a.gradient_more + at : nullptr;
            T* dy = (T*)a.product_gradient + at;
            norm_row_backward(
                a.normalized + at, a.inverse[row], width, a.gamma, dgamma, dbeta, a.residual_gradient + at,
                [&](int64_t j, Floats* g) { add_gradients(gradient, more, j, g); },
                [&](int64_t j, const Floats* dz) {
                    Floats kept[2];
                    factors(a.noise, (a.noise.first * width + at + j) / 2, kept[0], kept[1]);
                    for (int half = 0; half < 2; half++) {
                        const int64_t i = j + half * LANES;
                        Floats d = dz[half] * kept[half];
                        store(dy + i, d);
                        store(dbias + i, load(dbias + i) + d);
                    }
                });
        }
    });
    add_partial(width, used, 3 * width, a.partial, a.gamma_gradient);
    add_partial(width, used, 3 * width, a.partial + width, a.beta_gradient);
    add_partial(width, used, 3 * width, a.partial + 2 * width, a.bias_gradient);
}
EXPORT(add_norm_backward, AddNormBackward)
