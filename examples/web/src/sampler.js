// A sampler file and how to draw with it. The runtime is handed in, so that this serves
// onnxruntime-web and onnxruntime-node alike.

import { readMetadata } from "./metadata.js";
import { normal } from "./noise.js";

/**
 * Images that go through the network together: many are faster, few are seen earlier. A file of one
 * step shows its images after every step, one of a whole sampler when they are done.
 */
const BATCH = { step: 16, sampler: 4 };
const SHAPE = ["channels", "height", "width"];

export class Sampler {
  #session;
  #ort;
  #what;

  /**
   * @param {Uint8Array} bytes a file of `sparse-ddpm export --what step` or `--what sampler`
   * @param {object} ort the module onnxruntime-web or onnxruntime-node
   * @returns {Promise<Sampler>}
   * @throws {Error} when the file is no such model; the message is meant for people
   */
  static async load(bytes, ort) {
    const metadata = readMetadata(bytes);
    if (!Object.hasOwn(BATCH, metadata.what ?? "")) {
      const found = metadata.what ? `a ${metadata.what}` : "an ONNX file of somebody else's";
      throw new Error(`expected a file of “sparse-ddpm export --what step”, got ${found}`);
    }
    if (metadata.noise_seed) {
      throw new Error(
        `expected a sampler that takes noise, got one with seed ${metadata.noise_seed}`,
      );
    }
    for (const name of ["steps", ...SHAPE]) {
      if (!(Number(metadata[name]) >= 1)) {
        throw new Error(`expected a number of ${name} in the file, got ${metadata[name]}`);
      }
    }
    return new Sampler(await ort.InferenceSession.create(bytes), metadata, ort);
  }

  constructor(session, metadata, ort) {
    this.metadata = metadata;
    this.steps = Number(metadata.steps);
    /** Channels, height and width of an image. */
    this.shape = SHAPE.map((name) => Number(metadata[name]));
    this.#session = session;
    this.#ort = ort;
    this.#what = metadata.what;
  }

  /**
   * Draw images 0 to count - 1 of a seed. Which others are drawn with it does not change an image.
   *
   * @param {object} job
   * @param {bigint} job.seed in [0, 2**64)
   * @param {number} job.count at least 1
   * @param {(step: number, steps: number, first: number, x: Float32Array) => unknown} [job.onStep]
   *   awaited after each step: how many of all are done, and the state [n, C, H, W] of the images
   *   from `first` on. When it returns false, drawing stops.
   * @returns {Promise<Float32Array | null>} images [count, C, H, W] from -1 to 1; null when stopped
   */
  async draw({ seed, count, onStep = () => true }) {
    const size = this.#size;
    const batch = BATCH[this.#what];
    const steps = Math.ceil(count / batch) * this.steps;
    const images = new Float32Array(count * size);
    let done = 0;
    for (let first = 0; first < count; first += batch) {
      const rows = Array.from({ length: Math.min(batch, count - first) }, (_, row) => first + row);
      for await (const [taken, x] of this.#run(seed, rows)) {
        done += taken;
        images.set(x, first * size);
        if ((await onStep(done, steps, first, x)) === false) return null;
      }
    }
    return images;
  }

  /** Free the model's memory. */
  close() {
    return this.#session.release();
  }

  get #size() {
    return this.shape.reduce((product, length) => product * length);
  }

  /** The images of `rows`, again and again: the steps since the last time, and the state. */
  async *#run(seed, rows) {
    const { inputNames } = this.#session;
    const images = (data) => this.#tensor(data, [rows.length, ...this.shape]);
    const noise = (step) => normal(seed, rows, step, this.#size);

    if (this.#what === "sampler") {
      const inputs = { noise: images(noise(0)) };
      if (inputNames.includes("step_noise")) {
        const all = new Float32Array(this.steps * inputs.noise.size);
        for (let step = 0; step < this.steps; step++) {
          all.set(noise(step + 1), step * inputs.noise.size);
        }
        inputs.step_noise = this.#tensor(all, [this.steps, ...inputs.noise.dims]);
      }
      yield [this.steps, (await this.#session.run(inputs)).images.data];
      return;
    }
    let x = images(noise(0));
    let x0 = x; // of no step yet: the first one does not look at it
    for (let step = 0; step < this.steps; step++) {
      const inputs = { x, step: this.#tensor(BigInt64Array.of(BigInt(step)), []) };
      if (inputNames.includes("noise")) inputs.noise = images(noise(step + 1));
      if (inputNames.includes("x0_previous")) inputs.x0_previous = x0;
      ({ x_next: x, x0 } = await this.#session.run(inputs));
      yield [1, x.data];
    }
  }

  #tensor(data, dims) {
    return new this.#ort.Tensor(data instanceof Float32Array ? "float32" : "int64", data, dims);
  }
}
