// Attention within each sentence of a packed batch, head by head.
//
//     S = scaling (Q + bq) (K + bk)^T,   P = softmax(S) over a sentence's tokens,   out = drop(P) (V + bv)
//
// Per sentence and head Q, K, V are (tokens, size). Queries are taken in blocks, so the memory that a thread needs grows
// with the length of a sentence and not with its square, and of P only the softmax's normalizer is kept for the backward
// pass, which computes P again: a small part of the work of a layer as long as sentences are not longer than its width.
#pragma once
#include "noise.h"
#include "parallel.h"

constexpr int64_t BLOCK = 64;  // queries

struct AttentionLayout {
    int64_t threads;
    int64_t heads;
    int64_t size;                  // of a head; a multiple of LANES
    int64_t sentences;
    const int64_t* starts;         // (sentences): the first token of each
    const int64_t* lengths;        // (sentences): its tokens
    const int64_t* query_starts;   // (sentences): where its queries begin; there are fewer than tokens where only
    const int64_t* query_lengths;  // (sentences): the first token of each sentence is computed
    const void* query;             // T (queries, query_stride): Q of all heads, side by side
    const void* key;               // T (tokens, key_stride)
    const void* value;             // T (tokens, key_stride)
    int64_t query_stride;          // from one token to the next
    int64_t key_stride;
    const float* query_bias;       // (heads * size)
    const float* key_bias;         // (heads * size)
    const float* value_bias;       // (heads * size)
    float scaling;
    Noise noise;
    float* normalizer;  // (queries, heads): log of the sum of exp(S) over keys; a result of the forward pass
    float* scratch;     // memory for (threads, attention_scratch)
    int64_t longest;    // the largest of lengths
};

// C = A B, or C += A B. A (rows, inner): element (i, k) is a[i * row + k * column]; B (inner, width), its rows apart by
// b_stride; C (rows, width). Rows are computed in groups of four: a and c must be allocated up to a multiple of 4.
template <int vectors>
INLINE void multiply_strip(int64_t inner, const float* a, int64_t row, int64_t column, const float* b,
                           int64_t b_stride, float* c, int64_t c_stride, bool add) {
    Floats sums[4][vectors];
    for (int i = 0; i < 4; i++)
        for (int v = 0; v < vectors; v++) sums[i][v] = add ? load(c + i * c_stride + v * LANES) : Floats{};
    for (int64_t k = 0; k < inner; k++) {
        Floats right[vectors];
        for (int v = 0; v < vectors; v++) right[v] = load(b + k * b_stride + v * LANES);
        for (int i = 0; i < 4; i++) {
            Floats left = all(a[i * row + k * column]);
            for (int v = 0; v < vectors; v++) sums[i][v] += left * right[v];
        }
    }
    for (int i = 0; i < 4; i++)
        for (int v = 0; v < vectors; v++) store(c + i * c_stride + v * LANES, sums[i][v]);
}
static void multiply(int64_t rows, int64_t width, int64_t inner, const float* a, int64_t row, int64_t column,
                     const float* b, int64_t b_stride, float* c, int64_t c_stride, bool add = false) {
    for (int64_t i = 0; i < rows; i += 4) {
        int64_t j = 0;
        for (; j + 2 * LANES <= width; j += 2 * LANES)
            multiply_strip<2>(inner, a + i * row, row, column, b + j, b_stride, c + i * c_stride + j, c_stride, add);
        for (; j < width; j += LANES)
            multiply_strip<1>(inner, a + i * row, row, column, b + j, b_stride, c + i * c_stride + j, c_stride, add);
    }
}

// to (padded, size) = (from (rows, stride) + bias) * scaling, and zeros from `rows` on.
template <class T>
INLINE void take(float* to, int64_t rows, int64_t padded, int64_t size, const T* from, int64_t stride, const float* bias,
                 float scaling) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t d = 0; d < size; d += LANES) {
            Floats v = load(from + i * stride + d);
            store(to + i * size + d, (bias ? v + load(bias + d) : v) * scaling);
        }
    memset(to + rows * size, 0, (padded - rows) * size * sizeof(float));
}
// to (size, padded) = (from (rows, stride) + bias) transposed, and zeros from `rows` on; padded: a multiple of LANES.
template <class T>
INLINE void take_transposed(float* to, int64_t rows, int64_t padded, int64_t size, const T* from, int64_t stride,
                            const float* bias) {
    for (int64_t i = 0; i < padded; i += LANES)
        for (int64_t d = 0; d < size; d += LANES) {
            Floats tile[LANES];
            for (int k = 0; k < LANES; k++)
                tile[k] = i + k < rows ? load(from + (i + k) * stride + d) + load(bias + d) : Floats{};
            transpose(tile);
            for (int k = 0; k < LANES; k++) store(to + (d + k) * padded + i, tile[k]);
        }
}
// to (rows, stride) = from (rows, size) * scaling; the sum over rows is added to `total`, where there is one.
template <class T>
INLINE void give(T* to, int64_t stride, int64_t rows, int64_t size, const float* from, float scaling, float* total) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t d = 0; d < size; d += LANES) {
            Floats v = load(from + i * size + d) * scaling;
            store(to + i * stride + d, v);
            if (total) store(total + d, load(total + d) + v);
        }
}

// Calls body(sentence, head) for the pairs of a thread. The pairs are divided by their numbers of tokens.
template <class Body>
static void for_pairs(const AttentionLayout& a, int thread, int threads, Body body) {
    if (!a.sentences) return;
    Share share((a.starts[a.sentences - 1] + a.lengths[a.sentences - 1]) * a.heads, thread, threads);
    for (int64_t sentence = 0; sentence < a.sentences; sentence++)
        for (int64_t head = 0; head < a.heads; head++) {
            const int64_t at = a.starts[sentence] * a.heads + head * a.lengths[sentence];
            if (at >= share.from && at < share.to) body(sentence, head);
        }
}

// -inf instead of the scores from number `left` on: those beyond the sentence.
INLINE Floats only(Floats scores, int64_t left) {
    return select((Ints)lane_numbers() < int32_t(left), scores, all(-INFINITY));
}

// The floats of scratch memory that a thread needs.
extern "C" int64_t attention_scratch(int64_t longest, int64_t size) {
    const int64_t padded = up(longest, 16);
    return 3 * BLOCK * size + 5 * padded * size + 2 * BLOCK * padded;
}

struct AttentionForward {
    AttentionLayout layout;
    void* out;  // result T (queries, heads * size)
};

template <class T>
static void attention_forward(const AttentionForward& arguments) {
    const AttentionLayout& a = arguments.layout;
    const int64_t size = a.size, width = a.heads * size;
    parallel(a.threads, [&](int thread, int threads) {
        const int64_t most = up(a.longest, 16);
        float* Q = a.scratch + thread * attention_scratch(a.longest, size);
        float *O = Q + BLOCK * size, *Kt = O + BLOCK * size, *V = Kt + most * size, *S = V + most * size;
        for_pairs(a, thread, threads, [&](int64_t sentence, int64_t head) {
            const int64_t length = a.lengths[sentence], padded = up(length, LANES), place = head * size;
            const int64_t first_query = a.query_starts[sentence];
            const int64_t key = a.starts[sentence] * a.key_stride + place;
            const Noise noise = of_pair(a.noise, (a.noise.first + sentence) * a.heads + head);
            take_transposed(Kt, length, padded, size, (const T*)a.key + key, a.key_stride, a.key_bias + place);
            take(V, length, length, size, (const T*)a.value + key, a.key_stride, a.value_bias + place, 1.0f);
            for (int64_t begin = 0; begin < a.query_lengths[sentence]; begin += BLOCK) {
                const int64_t left = a.query_lengths[sentence] - begin, rows = left < BLOCK ? left : BLOCK;
                const int64_t query = first_query + begin;
                take(Q, rows, up(rows, 4), size, (const T*)a.query + query * a.query_stride + place, a.query_stride,
                     a.query_bias + place, a.scaling);
                multiply(rows, padded, size, Q, size, 1, Kt, padded, S, padded);
                for (int64_t i = 0; i < rows; i++) {
                    float* s = S + i * padded;
                    Floats top = all(-INFINITY), total = {};
                    for (int64_t j = 0; j < padded; j += LANES) top = larger(only(load(s + j), length - j), top);
                    const float highest = largest(top);
                    for (int64_t j = 0; j < padded; j += LANES) {
                        Floats e = exponential(only(load(s + j), length - j) - highest);
                        store(s + j, e);
                        total += e;
                    }
                    const float denominator = sum(total);
                    a.normalizer[(query + i) * a.heads + head] = highest + logf(denominator);
                    for (int64_t j = 0; j < padded; j += LANES)
                        store(s + j, load(s + j) * (1.0f / denominator) * factors(noise, (begin + i) * padded + j));
                }
                multiply(rows, size, length, S, padded, 1, V, size, O, size);
                give((T*)arguments.out + query * width + place, width, rows, size, O, 1.0f, nullptr);
            }
        });
    });
}
EXPORT(attention_forward, AttentionForward)

// With G the gradient of out, D = drop(P) and f the factors of dropout:
//
//     dV = D^T G,   dP = f * (G V^T),   dS = P * (dP - sum over keys of dP * P)
//     dQ = scaling dS K,   dK = dS^T (scaling Q);   the gradients of the biases are the sums over tokens
struct AttentionBackward {
    AttentionLayout layout;
    const void* gradient;        // T (queries, heads * size): G
    float* partial;              // memory for (threads, 3, heads * size)
    void* query_gradient;        // result T, as query
    void* key_gradient;          // result T, as key
    void* value_gradient;        // result T, as value
    float* query_bias_gradient;  // result (heads * size)
    float* key_bias_gradient;    // result (heads * size)
    float* value_bias_gradient;  // result (heads * size)
};

template <class T>
static void attention_backward(const AttentionBackward& arguments) {
    const AttentionLayout& a = arguments.layout;
    const int64_t size = a.size, width = a.heads * size;
    int used = 1;
    parallel(a.threads, [&](int thread, int threads) {
        if (thread == 0) used = threads;
        float* query_bias = arguments.partial + thread * 3 * width;
        float *key_bias = query_bias + width, *value_bias = key_bias + width;
        memset(query_bias, 0, 3 * width * sizeof(float));
        const int64_t most = up(a.longest, 16);
        float* Q = a.scratch + thread * attention_scratch(a.longest, size);
        float *G = Q + BLOCK * size, *dQ = G + BLOCK * size, *K = dQ + BLOCK * size, *Kt = K + most * size;
        float *Vt = Kt + most * size, *dK = Vt + most * size, *dV = dK + most * size;
        float *D = dV + most * size, *dS = D + BLOCK * most;
        for_pairs(a, thread, threads, [&](int64_t sentence, int64_t head) {
            const int64_t length = a.lengths[sentence], padded = up(length, LANES), place = head * size;
            const int64_t first_query = a.query_starts[sentence];
            const int64_t key = a.starts[sentence] * a.key_stride + place;
            const Noise noise = of_pair(a.noise, (a.noise.first + sentence) * a.heads + head);
            take(K, length, length, size, (const T*)a.key + key, a.key_stride, a.key_bias + place, 1.0f);
            take_transposed(Kt, length, padded, size, (const T*)a.key + key, a.key_stride, a.key_bias + place);
            take_transposed(Vt, length, padded, size, (const T*)a.value + key, a.key_stride, a.value_bias + place);
            for (int64_t begin = 0; begin < a.query_lengths[sentence]; begin += BLOCK) {
                const int64_t left = a.query_lengths[sentence] - begin, rows = left < BLOCK ? left : BLOCK;
                const int64_t query = first_query + begin;
                take(Q, rows, up(rows, 4), size, (const T*)a.query + query * a.query_stride + place, a.query_stride,
                     a.query_bias + place, a.scaling);
                take(G, rows, up(rows, 4), size, (const T*)arguments.gradient + query * width + place, width, nullptr,
                     1.0f);
                multiply(rows, padded, size, Q, size, 1, Kt, padded, D, padded);   // S, until it is overwritten
                multiply(rows, padded, size, G, size, 1, Vt, padded, dS, padded);  // that of drop(P)
                for (int64_t i = 0; i < rows; i++) {
                    float *d = D + i * padded, *ds = dS + i * padded;
                    const float normalizer = a.normalizer[(query + i) * a.heads + head];
                    Floats total = {};
                    for (int64_t j = 0; j < padded; j += LANES) {
                        Floats p = exponential(only(load(d + j), length - j) - normalizer);
                        Floats dp = load(ds + j) * factors(noise, (begin + i) * padded + j);
                        store(d + j, p);
                        store(ds + j, dp);
                        total += dp * p;
                    }
                    const float mean = sum(total);
                    for (int64_t j = 0; j < padded; j += LANES) {
                        Floats p = load(d + j);
                        store(ds + j, p * (load(ds + j) - mean));
                        store(d + j, p * factors(noise, (begin + i) * padded + j));
                    }
                }
                multiply(length, size, rows, D, 1, padded, G, size, dV, size, begin > 0);
                multiply(length, size, rows, dS, 1, padded, Q, size, dK, size, begin > 0);
                multiply(rows, size, length, dS, padded, 1, K, size, dQ, size);
                give((T*)arguments.query_gradient + query * a.query_stride + place, a.query_stride, rows, size, dQ,
                     a.scaling, query_bias + place);
            }
            give((T*)arguments.key_gradient + key, a.key_stride, length, size, dK, 1.0f, key_bias + place);
            give((T*)arguments.value_gradient + key, a.key_stride, length, size, dV, 1.0f, value_bias + place);
        });
    });
    add_partial(width, used, 3 * width, arguments.partial, arguments.query_bias_gradient);
    add_partial(width, used, 3 * width, arguments.partial + width, arguments.key_bias_gradient);
    add_partial(width, used, 3 * width, arguments.partial + 2 * width, arguments.value_bias_gradient);
}
EXPORT(attention_backward, AttentionBackward)
