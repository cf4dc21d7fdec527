// The norm of all gradients and AdamW, each in one pass over memory: as in torch, without a pass that scales gradients.
//
//     m = m + (1 - beta1) (c g - m),   v = beta2 v + (1 - beta2) (c g)^2          c: the factor of clipping
//     p = (1 - rate decay) p - rate / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
//
// (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2.) Of an embedding, most rows have no gradient in a step. Rows
// that never had one have m = v = 0; without decay nothing changes there, and they are skipped.
#pragma once
#include <cmath>
#include <cstring>

#include "parallel.h"

// One parameter. Sums and updates go by units: a row of an embedding, or 4,096 elements.
struct Parameter {
    float *value, *gradient, *m, *v;
    uint8_t* rows;  // (size / unit): bit 1: has a gradient in this step; bit 2: had one before. Null: all have one
    int64_t size, unit;
};
constexpr uint8_t NOW = 1, BEFORE = 2;

struct GradientNorm {
    int64_t threads;
    int64_t count;
    const void* parameters;  // Parameter (count)
    double* partial;         // memory for (threads)
    double* norm;            // result (1)
};

static void gradient_norm(const GradientNorm& a) {
    int used = 1;
    parallel(a.threads, [&](int thread, int threads) {
        if (thread == 0) used = threads;
        double total = 0;
        for (int64_t i = 0; i < a.count; i++) {
            const Parameter& p = ((const Parameter*)a.parameters)[i];
            Share share((p.size + p.unit - 1) / p.unit, thread, threads);
            for (int64_t unit = share.from; unit < share.to; unit++) {
                if (p.rows && !(p.rows[unit] & NOW)) continue;
                const int64_t end = p.size < (unit + 1) * p.unit ? p.size : (unit + 1) * p.unit;
                // Several sums, so that the compiler can use vectors without changing the order of any of them.
                float sums[32] = {};
                int64_t j = unit * p.unit;
                for (; j + 32 <= end; j += 32)
                    for (int64_t k = 0; k < 32; k++) sums[k] += p.gradient[j + k] * p.gradient[j + k];
                for (; j < end; j++) sums[0] += p.gradient[j] * p.gradient[j];
                float squares = 0;
                for (int64_t k = 0; k < 32; k++) squares += sums[k];
                total += squares;
            }
        }
        a.partial[thread] = total;
    });
    double total = 0;
    for (int thread = 0; thread < used; thread++) total += a.partial[thread];
    *a.norm = sqrt(total);
}
EXPORT_ONE(gradient_norm, GradientNorm)

struct AdamW {
    int64_t threads;
    int64_t count;
    const void* parameters;  // Parameter (count)
    float clip;              // c
    float rate;
    float beta1, beta2, epsilon, decay;
    float correction1, correction2;  // 1 - beta1^t, 1 - beta2^t
};

static void adamw(const AdamW& a) {
    const float step = a.rate / a.correction1, scale = 1.0f / sqrtf(a.correction2), keep = 1.0f - a.rate * a.decay;
    const float clip = a.clip, beta1 = a.beta1, beta2 = a.beta2, epsilon = a.epsilon;
    parallel(a.threads, [&](int thread, int threads) {
        for (int64_t i = 0; i < a.count; i++) {
            const Parameter& p = ((const Parameter*)a.parameters)[i];
            Share share((p.size + p.unit - 1) / p.unit, thread, threads);
            for (int64_t unit = share.from; unit < share.to; unit++) {
                if (p.rows && !p.rows[unit] && a.decay == 0) continue;
                const int64_t begin = unit * p.unit, left = p.size - begin, size = left < p.unit ? left : p.unit;
                float* __restrict value = p.value + begin;
                float* __restrict m = p.m + begin;
                float* __restrict v = p.v + begin;
                const float* __restrict gradient = p.gradient + begin;
                for (int64_t j = 0; j < size; j++) {
                    const float g = clip * gradient[j];
                    m[j] += (1.0f - beta1) * (g - m[j]);
                    v[j] = beta2 * v[j] + (1.0f - beta2) * g * g;
                    value[j] = keep * value[j] - step * m[j] / (sqrtf(v[j]) * scale + epsilon);
                }
                if (p.rows && p.rows[unit] & NOW) p.rows[unit] = NOW | BEFORE;
            }
        }
    });
}
EXPORT_ONE(adamw, AdamW)
