// The states before the first layer: a token's embeddings of word, position and token type, added, normed, and dropout.
//
//     z = words[token] + positions[place] + token_type,   out = drop(norm(z))
#pragma once
#include "norm.h"

struct EmbeddingForward {
    NormForward norm;         // whose rows are tokens
    const int64_t* tokens;    // (rows): rows of `words`
    const int64_t* places;    // (rows): rows of `positions`
    const float* words;       // (vocabulary, width)
    const float* positions;   // (places, width)
    const float* token_type;  // (width): that of all tokens, or null
};

template <class T>
static void embedding_forward(const EmbeddingForward& a) {
    const int64_t width = a.norm.width;
    norm_forward<T>(
        a.norm,
        [&](int64_t row, int64_t j, Floats* z) {
            for (int half = 0; half < 2; half++) {
                const int64_t i = j + half * LANES;
                z[half] = load(a.words + a.tokens[row] * width + i) + load(a.positions + a.places[row] * width + i);
                if (a.token_type) z[half] += load(a.token_type + i);
            }
        },
        [&](int64_t row, int64_t j, Floats* out) {
            Floats kept[2];
            factors(a.norm.noise, row, width, j, kept);
            for (int half = 0; half < 2; half++) out[half] *= kept[half];
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
            factors(a.noise, row, a.width, j, kept);
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
