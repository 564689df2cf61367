// Gaussian noise as a pure function of (seed, image, step): the same numbers as the Python package
// makes (sparse_ddpm/sampling/noise.py holds the contract), so the same seed gives the same digits.

const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57];
const WEYL = [0x9e3779b9, 0xbb67ae85];
const ROUNDS = 10;
const WORD = 2 ** 32;

/** The upper 32 bits of the product of two unsigned 32-bit integers. */
function upperHalf(a, b) {
  const low = a & 0xffff;
  const high = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  // Each sum stays below 2**32: (2**16 - 1)**2 + 2**16 - 1 does.
  const middle = high * bLow + ((low * bLow) >>> 16);
  const carry = low * bHigh + (middle & 0xffff);
  return (high * bHigh + (middle >>> 16) + (carry >>> 16)) >>> 0;
}

/**
 * Philox4x32-10 (Salmon et al. 2011): four 32-bit words of a counter of four and a key of two.
 *
 * @param {number[]} counter four integers in [0, 2**32)
 * @param {number[]} key two integers in [0, 2**32)
 * @returns {number[]} four integers in [0, 2**32)
 */
export function philox([c0, c1, c2, c3], [k0, k1]) {
  for (let round = 0; round < ROUNDS; round++) {
    const upper0 = upperHalf(MULTIPLIERS[0], c0);
    const upper1 = upperHalf(MULTIPLIERS[1], c2);
    const lower0 = Math.imul(MULTIPLIERS[0], c0) >>> 0;
    const lower1 = Math.imul(MULTIPLIERS[1], c2) >>> 0;
    [c0, c1, c2, c3] = [(upper1 ^ c1 ^ k0) >>> 0, lower1, (upper0 ^ c3 ^ k1) >>> 0, lower0];
    k0 = (k0 + WEYL[0]) >>> 0;
    k1 = (k1 + WEYL[1]) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/**
 * Standard normal noise of some images at one step; step 0 is the noise that drawing starts from,
 * step i + 1 the fresh noise of step i.
 *
 * @param {bigint} seed in [0, 2**64)
 * @param {number[]} images their indices, integers >= 0
 * @param {number} step an integer in [0, 2**32)
 * @param {number} size elements of one image, in the order [C, H, W]
 * @returns {Float32Array} images.length * size numbers
 */
export function normal(seed, images, step, size) {
  const key = [Number(seed & 0xffffffffn), Number(seed >> 32n)];
  const noise = new Float32Array(images.length * size);
  images.forEach((image, row) => {
    const [low, high] = [image % WORD, Math.floor(image / WORD)];
    for (let block = 0; 4 * block < size; block++) {
      const words = philox([block, step, low, high], key);
      const four = [...boxMuller(words[0], words[1]), ...boxMuller(words[2], words[3])];
      noise.set(four.slice(0, size - 4 * block), row * size + 4 * block);
    }
  });
  return noise;
}

/** Two normal numbers of two uniform words (Box & Muller 1958). */
function boxMuller(first, second) {
  const radius = Math.sqrt(-2 * Math.log((first + 0.5) / WORD));
  const angle = (second + 0.5) * (Math.PI / 2 ** 31);
  return [radius * Math.cos(angle), radius * Math.sin(angle)];
}

/**
 * A seed as people type it.
 *
 * @param {string} text
 * @returns {bigint | null} null for what is no integer in [0, 2**64)
 */
export function parseSeed(text) {
  if (!/^\s*\d{1,20}\s*$/.test(text)) return null;
  const seed = BigInt(text.trim());
  return seed < 2n ** 64n ? seed : null;
}
