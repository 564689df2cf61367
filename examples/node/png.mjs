// Images as a PNG file, side by side.

import { crc32, deflateSync } from "node:zlib";

const SIGNATURE = Buffer.from("89504e470d0a1a0a", "hex");
const [GREY, COLOUR] = [0, 2];

/**
 * @param {{data: Float32Array, dims: readonly number[]}} images [N, C, H, W] from -1 to 1, C 1 or 3
 * @returns {Buffer} the file: one picture, H high and N * W wide
 */
export function png({ data, dims: [count, channels, height, width] }) {
  const pixels = new Uint8ClampedArray(height * (1 + count * width * channels));
  let at = 0;
  for (let row = 0; row < height; row++) {
    at++; // each row begins with the number of its filter, 0 for none
    for (let image = 0; image < count; image++) {
      for (let column = 0; column < width; column++) {
        for (let channel = 0; channel < channels; channel++) {
          const from = ((image * channels + channel) * height + row) * width + column;
          pixels[at++] = (data[from] + 1) * 127.5;
        }
      }
    }
  }
  const header = Buffer.alloc(13);
  header.writeUInt32BE(count * width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, channels === 1 ? GREY : COLOUR], 8); // 8 bits a channel
  return Buffer.concat([
    SIGNATURE,
    chunk("IHDR", header),
    chunk("IDAT", deflateSync(pixels)),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

function chunk(kind, content) {
  const body = Buffer.concat([Buffer.from(kind, "ascii"), content]);
  const [length, check] = [Buffer.alloc(4), Buffer.alloc(4)];
  length.writeUInt32BE(content.length);
  check.writeUInt32BE(crc32(body));
  return Buffer.concat([length, body, check]);
}
