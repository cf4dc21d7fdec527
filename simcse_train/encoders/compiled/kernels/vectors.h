// Vectors of LANES floats, by the vector extensions that GCC (12 or later) and Clang share: AVX-512, AVX2, Arm and
// everything else from the same source. States are float or bf16; all arithmetic is in float.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

struct bf16 {
    uint16_t bits;  // the upper half of a float
};

INLINE Floats all(float x) { return Floats{} + x; }

INLINE Floats load(const float* from) {
    Floats v;
    memcpy(&v, from, sizeof v);
    return v;
}
INLINE Floats load(const bf16* from) {
    Halves h;
    memcpy(&h, from, sizeof h);
    return (Floats)(__builtin_convertvector(h, Words) << 16);
}
INLINE void store(float* to, Floats v) { memcpy(to, &v, sizeof v); }

// Rounds to the nearest bf16, to even where two are equally near. Infinities stay, and so do values that are not
// numbers, which the sum would turn into zeros.
INLINE void store(bf16* to, Floats v) {
#if defined(__AVX512BF16__)
    auto h = _mm512_cvtneps_pbh((__m512)v);
    memcpy(to, &h, sizeof h);
#else
    Words u = (Words)v;
    Words rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    Words quiet = (u >> 16) | 0x40u;
    Words number = (Words)((u & 0x7fffffffu) <= 0x7f800000u);
    Halves h = __builtin_convertvector((number & rounded) | (~number & quiet), Halves);
    memcpy(to, &h, sizeof h);
#endif
}

INLINE Floats select(Ints condition, Floats yes, Floats no) {
    return (Floats)((condition & (Ints)yes) | (~condition & (Ints)no));
}
// Both return a where a is not a number.
INLINE Floats larger(Floats a, Floats b) { return select(a < b, b, a); }
INLINE Floats smaller(Floats a, Floats b) { return select(a > b, b, a); }

template <int distance, size_t... lane>
INLINE Floats exchanged(Floats v, std::index_sequence<lane...>) {
    return __builtin_shufflevector(v, v, (int(lane) ^ distance)...);
}
template <int distance>
INLINE Floats exchanged(Floats v) {
    return exchanged<distance>(v, std::make_index_sequence<LANES>());
}

template <int distance = LANES / 2>
INLINE float sum(Floats v) {
    v += exchanged<distance>(v);
    if constexpr (distance > 1)
        return sum<distance / 2>(v);
    else
        return v[0];
}
template <int distance = LANES / 2>
INLINE float largest(Floats v) {
    v = larger(v, exchanged<distance>(v));
    if constexpr (distance > 1)
        return largest<distance / 2>(v);
    else
        return v[0];
}

template <size_t... lane>
INLINE Words lane_numbers(std::index_sequence<lane...>) {
    return Words{uint32_t(lane)...};
}
INLINE Words lane_numbers() { return lane_numbers(std::make_index_sequence<LANES>()); }

// Transposes LANES x LANES values: stage by stage, pairs of rows at a distance exchange blocks of that size.
template <int distance, size_t... lane>
INLINE void exchange_blocks(Floats& upper, Floats& lower, std::index_sequence<lane...>) {
    Floats a = upper, b = lower;
    upper = __builtin_shufflevector(a, b, (int(lane) & distance ? LANES + int(lane) - distance : int(lane))...);
    lower = __builtin_shufflevector(a, b, (int(lane) & distance ? LANES + int(lane) : int(lane) + distance)...);
}
template <int distance = 1>
INLINE void transpose(Floats* rows) {
    for (int i = 0; i < LANES; i++)
        if (!(i & distance)) exchange_blocks<distance>(rows[i], rows[i + distance], std::make_index_sequence<LANES>());
    if constexpr (2 * distance < LANES) transpose<2 * distance>(rows);
}

// e^x to 1e-7 of its value; 0 below -87, where a float begins to lose digits, and NaN for NaN. x must not exceed 88.
//
// x = n ln 2 + r, |r| <= ln 2 / 2, and e^x = 2^n e^r. The polynomial for e^r is that of Cephes (expf).
INLINE Floats exponential(Floats x) {
    Floats bounded = larger(x, all(-87.0f));
    Floats n = (bounded * 1.44269504f + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: rounds to an integer
    Floats r = bounded - n * 0.693359375f + n * 2.12194440e-4f;      // ln 2 in two parts
    Floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Words power = ((Words)__builtin_convertvector(n, Ints) + 127u) << 23;  // 2^n, by its bits
    return select(x < -87.0f, Floats{}, p * (Floats)power);
}

constexpr int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
