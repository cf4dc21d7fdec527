// The states before the first layer: a token's embeddings of word, position and token type, added, normed, and dropout.
//
//     z = words[token] + positions[place] + token_type,   out = drop(norm(z))
#pragma once
#include "norm.h"

struct EmbeddingForward {
    int64_t threads;
    int64_t rows;             // tokens
    int64_t width;            // a multiple of 2 * LANES
    const int64_t* tokens;    // (rows): rows of `words`
    const int64_t* places;    // (rows): rows of `positions`
    const float* words;       // (vocabulary, width)
    const float* positions;   // (places, width)
    const float* token_type;  // (width): that of all tokens, or null
    const float* gamma;       // (width)
    const float* beta;        // (width)
    float epsilon;            // added to the variance
    Noise noise;
    float* normalized;  // result (rows, width): x
    float* inverse;     // result (rows): 1 / deviation
    void* out;          // result T (rows, width)
    float* out_float;   // the same in float
};

template <class T>
static void embedding_forward(const EmbeddingForward& a) {
    const int64_t width = a.width;
    parallel(a.threads, [&](int thread, int threads) {
        Share share(a.rows, thread, threads);
        for (int64_t row = share.from; row < share.to; row++) {
            const int64_t at = row * width;
            const float* word = a.words + a.tokens[row] * width;
            const float* position = a.positions + a.places[row] * width;
            float* x = a.normalized + at;
            Floats total = {};
            for (int64_t j = 0; j < width; j += LANES) {
                Floats z = load(word + j) + load(position + j);
                if (a.token_type) z += load(a.token_type + j);
                store(x + j, z);
                total += z;
            }
            a.inverse[row] = norm_row(x, width, total, a.gamma, a.beta, a.epsilon, [&](int64_t j, const Floats* out) {
                Floats kept[2];
                factors(a.noise, (a.noise.first * width + at + j) / 2, kept[0], kept[1]);
                for (int half = 0; half < 2; half++) {
                    const int64_t i = at + j + half * LANES;
                    store((T*)a.out + i, out[half] * kept[half]);
                    store(a.out_float + i, out[half] * kept[half]);
                }
            });
        }
    });
}
EXPORT(embedding_forward, EmbeddingForward)

// The gradient of z is that of each token's embeddings of word and position; its sum over rows, that of the token type.
template <class T>
static void embedding_backward(const NormBackward& a) {
    norm_backward<T>(
        a,
        [&](int64_t row, int64_t j, Floats* g) {
            Floats kept[2];
            factors(a.noise, ((a.noise.first + row) * a.width + j) / 2, kept[0], kept[1]);
            for (int half = 0; half < 2; half++) g[half] *= kept[half];
        },
        [](int64_t, int64_t, const Floats* dz, float* dtoken_type) {
            for (int half = 0; half < 2; half++)
                store(dtoken_type + half * LANES, load(dtoken_type + half * LANES) + dz[half]);
        });
}
EXPORT(embedding_backward, NormBackward)

// Sums of groups of rows: out[g] = sum over i in [ends[g - 1], ends[g]) of matrix[order[i]]. A group is summed by one
// thread, in its order.
struct SumRows {
    int64_t threads;
    int64_t width;         // a multiple of LANES
    int64_t groups;
    const int64_t* order;  // (ends of the last group): rows of the matrix
    const int64_t* ends;   // (groups): where each ends in `order`
    const float* matrix;   // (rows, width)
    float* out;            // result (groups, width)
};

static void sum_rows(const SumRows& a) {
    if (!a.groups) return;
    parallel(a.threads, [&](int thread, int threads) {
        Share share(a.ends[a.groups - 1], thread, threads);  // of rows: groups have from one to a hundred
        for (int64_t group = 0; group < a.groups; group++) {
            const int64_t begin = group ? a.ends[group - 1] : 0;
            if (begin < share.from || begin >= share.to) continue;
            for (int64_t j = 0; j < a.width; j += LANES) {
                Floats total = {};
                for (int64_t i = begin; i < a.ends[group]; i++) total += load(a.matrix + a.order[i] * a.width + j);
                store(a.out + group * a.width + j, total);
            }
        }
    });
}
EXPORT_ONE(sum_rows, SumRows)
