// Dropout by counter: whether an element is dropped is a hash of (key, number of the element). The backward pass hashes
// again instead of keeping a mask, and the result does not depend on the number of threads.
//
// 16 bits decide each element, so that a probability is met to within 1/131,072.
#pragma once
#include "vectors.h"

// Two random words for each place in the network in each pass; dropped where 16 bits are below `threshold` (0: no
// dropout); `factor` scales what is kept: 2^16 / (2^16 - threshold). Rows of a matrix, or sentences of attention, are
// numbered from `first` on: it is not 0 where a pass computes only a share of those that the noise belongs to.
struct Noise {
    uint32_t key1, key2, threshold;
    float factor;
    int64_t first;
};

// The rounds of a hash of 32 bits (Mueller's xorshift-multiply, constants of Wellons' lowbias32), keyed twice.
template <class Word>
INLINE Word hash(Word x, uint32_t key1, uint32_t key2) {
    x = (x ^ key1) * 0x9E3779B1u;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= (x >> 15) ^ key2;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

// The factors, 0 or noise.factor, that follow from 16 bits each.
INLINE Floats factors(const Noise& noise, Words bits) {
    return (Floats)((Ints)(bits >= noise.threshold) & (Ints)all(noise.factor));
}

// The factors of 2 * LANES elements of a row of a matrix, from element j on.
INLINE void factors(const Noise& noise, int64_t row, int64_t width, int64_t j, Floats* kept) {
    if (!noise.threshold) {
        kept[0] = kept[1] = all(1.0f);
        return;
    }
    const int64_t at = ((noise.first + row) * width + j) / 2;
    Words h = hash(lane_numbers() + uint32_t(at), noise.key1, noise.key2);
    kept[0] = factors(noise, h & 0xffffu);
    kept[1] = factors(noise, h >> 16);
}

// The noise of one head of one sentence, whose elements are numbered from 0.
INLINE Noise of_pair(Noise noise, int64_t pair) {
    noise.key1 = hash(uint32_t(pair), noise.key1, noise.key2);
    noise.key2 ^= hash(uint32_t(pair), noise.key2, noise.key1);
    return noise;
}

// The factors of LANES elements from number `at` on.
INLINE Floats factors(const Noise& noise, int64_t at) {
    if (!noise.threshold) return all(1.0f);
    return factors(noise, hash(lane_numbers() + uint32_t(at), noise.key1, noise.key2) >> 16);
}
