// Images as one picture, the grid that `sparse-ddpm sample` writes.

const GAP = 2;

/**
 * The size of the picture of some images, in pixels, and the place of each.
 *
 * @param {number} count
 * @param {number[]} shape [C, H, W]
 */
export function grid(count, [, height, width]) {
  const columns = Math.ceil(Math.sqrt(count));
  return {
    width: columns * (width + GAP) + GAP,
    height: Math.ceil(count / columns) * (height + GAP) + GAP,
    place: (index) => ({
      left: GAP + (index % columns) * (width + GAP),
      top: GAP + Math.floor(index / columns) * (height + GAP),
    }),
  };
}

/**
 * Colours of images.
 *
 * @param {Float32Array} x images [n, C, H, W] from -1 to 1, of 1 channel (grey) or 3
 * @param {number[]} shape [C, H, W]
 * @returns {Uint8ClampedArray} red, green, blue and opacity, [n, H, W, 4]
 */
export function colours(x, [channels, height, width]) {
  const area = height * width;
  const pixels = new Uint8ClampedArray((4 * x.length) / channels).fill(255);
  for (let at = 0; at < pixels.length / 4; at++) {
    const image = Math.floor(at / area) * channels * area + (at % area);
    for (let colour = 0; colour < 3; colour++) {
      // A clamped array rounds to the nearest whole number, halves to even, as numpy does.
      pixels[4 * at + colour] = (x[image + (colour % channels) * area] + 1) * 127.5;
    }
  }
  return pixels;
}
