// Layer norm, as part of the kernels that make what is normed.
//
//     x = (z - mean(z)) / deviation(z),   out = gamma * x + beta         mean and deviation over the row
#pragma once
#include "noise.h"
#include "parallel.h"

struct NormForward {
    int64_t threads;
    int64_t rows;
    int64_t width;       // a multiple of 2 * LANES
    const float* gamma;  // (width)
    const float* beta;   // (width)
    float epsilon;       // added to the variance
    Noise noise;
    float* normalized;  // result (rows, width): x
    float* inverse;     // result (rows): 1 / deviation
    void* out;          // result T (rows, width)
    float* out_float;   // the same in float, or null
};

// Calls before(row, j, z) to set the 2 * LANES values of z from element j on, and after(row, j, out) with those of out,
// to change them before they are stored.
template <class T, class Before, class After>
static void norm_forward(const NormForward& a, Before before, After after) {
    const int64_t width = a.width;
    parallel(a.threads, [&](int thread, int threads) {
        Share share(a.rows, thread, threads);
        for (int64_t row = share.from; row < share.to; row++) {
            const int64_t at = row * width;
            float* x = a.normalized + at;
            Floats total = {};
            for (int64_t j = 0; j < width; j += 2 * LANES) {
                Floats z[2];
                before(row, j, z);
                for (int half = 0; half < 2; half++) {
                    store(x + j + half * LANES, z[half]);
                    total += z[half];
                }
            }
            const float mean = sum(total) / width;
            Floats squares = {};
            for (int64_t j = 0; j < width; j += LANES) {
                Floats centred = load(x + j) - mean;
                squares += centred * centred;
            }
            const float inverse = 1.0f / sqrtf(sum(squares) / width + a.epsilon);
            a.inverse[row] = inverse;
            for (int64_t j = 0; j < width; j += 2 * LANES) {
                Floats out[2];
                for (int half = 0; half < 2; half++) {
                    const int64_t i = j + half * LANES;
                    Floats normalized = (load(x + i) - mean) * inverse;
                    store(x + i, normalized);
                    out[half] = normalized * load(a.gamma + i) + load(a.beta + i);
                }
                after(row, j, out);
                for (int half = 0; half < 2; half++) {
                    const int64_t i = at + j + half * LANES;
                    store((T*)a.out + i, out[half]);
                    if (a.out_float) store(a.out_float + i, out[half]);
                }
            }
        }
    });
}

// With g the gradient of out and h = gamma g:
//
//     dz = (h - mean(h) - x mean(h x)) / deviation
//     dgamma = sum over rows of g x,   dbeta = sum over rows of g
struct NormBackward {
    int64_t threads;
    int64_t rows;
    int64_t width;              // a multiple of 2 * LANES
    const float* gradient;      // (rows, width): that of out, or null for zeros
    const void* gradient_more;  // T (rows, width), added to it; or null
    const float* normalized;    // (rows, width): x
    const float* inverse;       // (rows): 1 / deviation
    const float* gamma;         // (width)
    Noise noise;                // that of the forward pass
    float* partial;             // memory for (threads, 3, width)
    float* sum_gradient;        // result (rows, width): dz
    float* gamma_gradient;      // result (width)
    float* beta_gradient;       // result (width)
    float* bias_gradient;       // result (width): that of what z has in every row, a sum over rows
};

// Calls before(row, j, g) with the 2 * LANES values of g from element j on, to change them before they are used, and
// after(row, j, dz, dbias) with those of dz, once it is stored, to add to dbias from there on.
template <class T, class Before, class After>
static void norm_backward(const NormBackward& a, Before before, After after) {
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
            const float* x = a.normalized + at;
            float* dz = a.sum_gradient + at;
            Floats total = {}, total_x = {};
            for (int64_t j = 0; j < width; j += 2 * LANES) {
                Floats g[2];
                for (int half = 0; half < 2; half++) {
                    const int64_t i = at + j + half * LANES;
                    g[half] = a.gradient ? load(a.gradient + i) : Floats{};
                    if (a.gradient_more) g[half] += load((const T*)a.gradient_more + i);
                }
                before(row, j, g);
                for (int half = 0; half < 2; half++) {
                    const int64_t i = j + half * LANES;
                    store(dgamma + i, load(dgamma + i) + g[half] * load(x + i));
                    store(dbeta + i, load(dbeta + i) + g[half]);
                    Floats h = g[half] * load(a.gamma + i);
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
                    d[half] = (load(dz + i) - mean - load(x + i) * mean_x) * a.inverse[row];
                    store(dz + i, d[half]);
                }
                after(row, j, d, dbias + j);
            }
        }
    });
    add_partial(width, used, 3 * width, a.partial, a.gamma_gradient);
    add_partial(width, used, 3 * width, a.partial + width, a.beta_gradient);
    add_partial(width, used, 3 * width, a.partial + 2 * width, a.bias_gradient);
}
