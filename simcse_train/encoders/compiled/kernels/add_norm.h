// Bias, dropout, residual and layer norm in one pass: what follows a linear layer in a transformer whose norms come last.
//
//     z = drop(y + bias) + r,   out = norm(z)
#pragma once
#include "norm.h"

struct AddNormForward {
    NormForward norm;
    const void* product;          // T (rows, width): y
    const float* bias;            // (width)
    const float* residual;        // (rows, width): r, or an x from which r = residual_gamma * x + residual_beta
    const float* residual_gamma;  // (width), or null where the residual is r itself
    const float* residual_beta;   // (width), or null
};

template <class T>
static void add_norm_forward(const AddNormForward& a) {
    const int64_t width = a.norm.width;
    norm_forward<T>(
        a.norm,
        [&](int64_t row, int64_t j, Floats* z) {
            Floats kept[2];
            factors(a.norm.noise, row, width, j, kept);
            for (int half = 0; half < 2; half++) {
                const int64_t i = j + half * LANES, at = row * width + i;
                Floats residual = load(a.residual + at);
                if (a.residual_gamma) residual = residual * load(a.residual_gamma + i) + load(a.residual_beta + i);
                z[half] = (load((const T*)a.product + at) + load(a.bias + i)) * kept[half] + residual;
            }
        },
        [](int64_t, int64_t, Floats*) {});
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
            factors(a.noise, row, a.width, j, kept);
            for (int half = 0; half < 2; half++) {
                Floats dy = dz[half] * kept[half];
                store((T*)arguments.product_gradient + row * a.width + j + half * LANES, dy);
                store(dbias + half * LANES, load(dbias + half * LANES) + dy);
            }
        });
}
EXPORT(add_norm_backward, AddNormBackward)
