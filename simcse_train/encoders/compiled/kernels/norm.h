// Layer norm of one row, as part of the kernels that make the row.
//
//     x = (z - mean(z)) / deviation(z),   out = gamma * x + beta         mean and deviation over the row
#pragma once
#include "vectors.h"

// On entry x holds z, whose sum is `total`; on return, x. Calls give(j, out) with the 2 * LANES values of out from
// element j on. Returns 1 / deviation.
template <class Give>
INLINE float norm_row(float* x, int64_t width, Floats total, const float* gamma, const float* beta, float epsilon,
                      Give give) {
    const float mean = sum(total) / width;
    Floats squares = {};
    for (int64_t j = 0; j < width; j += LANES) {
        Floats centred = load(x + j) - mean;
        squares += centred * centred;
    }
    const float inverse = 1.0f / sqrtf(sum(squares) / width + epsilon);
    for (int64_t j = 0; j < width; j += 2 * LANES) {
        Floats out[2];
        for (int half = 0; half < 2; half++) {
            const int64_t i = j + half * LANES;
            Floats normalized = (load(x + i) - mean) * inverse;
            store(x + i, normalized);
            out[half] = normalized * load(gamma + i) + load(beta + i);
        }
        give(j, out);
    }
    return inverse;
}

// With g the gradient of out, of which take(j, g) gives the 2 * LANES values from element j on, and h = gamma g:
//
//     dgamma += g x,   dbeta += g,   dz = (h - mean(h) - x mean(h x)) / deviation
//
// Calls give(j, dz) in the same way, once it is stored.
template <class Take, class Give>
INLINE void norm_row_backward(const float* x, float inverse, int64_t width, const float* gamma, float* dgamma,
                              float* dbeta, float* dz, Take take, Give give) {
    Floats total = {}, total_x = {};
    for (int64_t j = 0; j < width; j += 2 * LANES) {
        Floats g[2];
        take(j, g);
        for (int half = 0; half < 2; half++) {
            const int64_t i = j + half * LANES;
            store(dgamma + i, load(dgamma + i) + g[half] * load(x + i));
            store(dbeta + i, load(dbeta + i) + g[half]);
            Floats h = g[half] * load(gamma + i);
            store(dz + i, h);
            total += h;
            total_x += h * load(x + i);
        }
    }
    const float mean = sum(total) / width, mean_x = sum(total_x) / width;
    for (int64_t j = 0; j < width; j += 2 * LANES) {
        Floats d[2];
        for (int half = 0; half < 2; half++) {
            const int64_t i = j + half * LANES;
            d[half] = (load(dz + i) - mean - load(x + i) * mean_x) * inverse;
            store(dz + i, d[half]);
        }
        give(j, d);
    }
}

// The sum of two gradients from element j on: one in float and one in T, of which either may be null.
template <class T>
INLINE void add_gradients(const float* gradient, const T* more, int64_t j, Floats* sums) {
    for (int half = 0; half < 2; half++) {
        const int64_t i = j + half * LANES;
        sums[half] = gradient ? load(gradient + i) : Floats{};
        if (more) sums[half] += load(more + i);
    }
}
