"""Counter-based noise: Philox4x32-10 (Salmon et al. 2011) and Box-Muller (1958).

As `sparse_ddpm.sampling.noise` lays them out: uniforms, logarithm, sine and cosine are in float64,
and rounded to float32 at the end. The two differ by at most one unit in the last place of float32,
and hardly ever.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _philox(block, step, low, high, seed):
    """The four words, uint32, of each block's counter; uint64 tensors, of one seed or each its own.

    Ten rounds (Salmon et al. 2011); a product of 32-bit words is one instruction.
    """
    mask = 0xFFFFFFFF
    k0 = seed & mask
    k1 = seed >> 32
    c0, c1, c2, c3 = block, step, low, high
    for _ in tl.static_range(10):
        first = c0 * 0xD2511F53
        second = c2 * 0xCD9E8D57
        c0 = (second >> 32) ^ c1 ^ k0
        c1 = second & mask
        c2 = (first >> 32) ^ c3 ^ k1
        c3 = first & mask
        k0 = (k0 + 0x9E3779B9) & mask
        k1 = (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3


@triton.jit
def _box_muller(first, second):
    """Two normals of two words, in float64, as float32.

    The angle is a whole number of quarter turns and a rest of an eighth at most, of which Taylor's
    series have all digits.
    """
    radius = (first.to(tl.float64) + 0.5) * 2.3283064365386963e-10
    radius = tl.sqrt(-2.0 * tl.log(radius))
    quarters = ((second + (1 << 29)) >> 30).to(tl.int32)
    rest = (second.to(tl.int64) - (quarters.to(tl.int64) << 30)).to(tl.float64) + 0.5
    angle = rest * 1.4629180792671596e-09  # 2 pi / 2**32
    square = angle * angle
    sine = square * -7.647163731819816e-13 + 1.6059043836821613e-10
    sine = sine * square - 2.505210838544172e-08
    sine = sine * square + 2.7557319223985893e-06
    sine = sine * square - 1.984126984126984e-04
    sine = sine * square + 8.333333333333333e-03
    sine = sine * square - 1.6666666666666666e-01
    sine = sine * square * angle + angle
    cosine = square * 4.779477332387385e-14 - 1.1470745597729725e-11
    cosine = cosine * square + 2.08767569878681e-09
    cosine = cosine * square - 2.755731922398589e-07
    cosine = cosine * square + 2.48015873015873e-05
    cosine = cosine * square - 1.3888888888888889e-03
    cosine = cosine * square + 4.1666666666666664e-02
    cosine = cosine * square - 0.5
    cosine = cosine * square + 1.0
    # cos and sin of a quarter turn more are -sin and cos.
    odd = quarters % 2 == 1
    x = tl.where(odd, -sine, cosine)
    y = tl.where(odd, cosine, sine)
    back = quarters % 4 >= 2
    x = tl.where(back, -x, x)
    y = tl.where(back, -y, y)
    return (radius * x).to(tl.float32), (radius * y).to(tl.float32)


@triton.jit
def normal(seed, images, step, block, IMAGES: tl.constexpr, BLOCKS: tl.constexpr):
    """float32 [IMAGES, 4 * BLOCKS]: the noise of images [IMAGES] and blocks [BLOCKS].

    seed: int64, of all images or [IMAGES, 1].
    """
    zero = tl.zeros([IMAGES, BLOCKS], tl.uint64)
    image = images.to(tl.uint64, bitcast=True)[:, None]
    w0, w1, w2, w3 = _philox(
        zero + block.to(tl.uint64)[None, :],
        zero + step.to(tl.uint64),
        zero + (image & 0xFFFFFFFF),
        zero + (image >> 32),
        seed.to(tl.uint64, bitcast=True),
    )
    z0, z1 = _box_muller(w0, w1)
    z2, z3 = _box_muller(w2, w3)
    z = tl.join(tl.join(z0, z2), tl.join(z1, z3))
    return tl.reshape(z, [IMAGES, 4 * BLOCKS])
