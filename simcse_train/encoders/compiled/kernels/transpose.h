// A matrix transposed, tile by tile. oneDNN multiplies by a transposed matrix of states at half its rate with AMX; to
// transpose the states before is a small part of what that costs.
//
//     to[j, i] = from[i, j]
#pragma once
#include "parallel.h"
#include "vectors.h"

struct Transpose {
    int64_t threads;
    int64_t rows;
    int64_t width;       // a multiple of LANES
    const void* matrix;  // T (rows, width)
    void* out;           // result T (width, rows)
};
struct TransposeToFloat {
    int64_t threads;
    int64_t rows;
    int64_t width;       // a multiple of LANES
    const void* matrix;  // T (rows, width)
    float* out;          // result (width, rows)
};

// A thread takes groups of 32 rows: a cache line of bf16 in each row of the result.
template <class From, class To>
static void transpose_matrix(int64_t most, int64_t rows, int64_t width, const From* from, To* to) {
    parallel(most, [&](int thread, int threads) {
        Share share(up(rows, 32) / 32, thread, threads);
        const int64_t end = share.to * 32 < rows ? share.to * 32 : rows;
        for (int64_t group = share.from * 32; group < end; group += 32)
            for (int64_t j = 0; j < width; j += LANES)
                for (int64_t i = group; i < group + 32 && i < end; i += LANES) {
                    const int64_t left = rows - i;
                    Floats tile[LANES];
                    for (int k = 0; k < LANES; k++) tile[k] = k < left ? load(from + (i + k) * width + j) : Floats{};
                    transpose(tile);
                    for (int k = 0; k < LANES; k++) {
                        To* row = to + (j + k) * rows + i;
                        if (left >= LANES) {
                            store(row, tile[k]);
                        } else {
                            To last[LANES];
                            store(last, tile[k]);
                            memcpy(row, last, left * sizeof(To));
                        }
                    }
                }
    });
}

template <class T>
static void transpose_states(const Transpose& a) {
    transpose_matrix(a.threads, a.rows, a.width, (const T*)a.matrix, (T*)a.out);
}
EXPORT(transpose_states, Transpose)

template <class T>
static void transpose_to_float(const TransposeToFloat& a) {
    transpose_matrix(a.threads, a.rows, a.width, (const T*)a.matrix, a.out);
}
EXPORT(transpose_to_float, TransposeToFloat)
