// The work behind the page, in a thread of its own, so that the page stays alive.

import * as ort from "onnxruntime-web/wasm";
import { colours } from "./picture.js";
import { Sampler } from "./sampler.js";

const RUNTIME = {
  mjs: new URL("ort-wasm-simd-threaded.mjs", import.meta.url).href,
  wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href,
};
ort.env.wasm.wasmPaths = RUNTIME;

let sampler = null;
let stopped = false;

const jobs = {
  async open({ bytes, threads }) {
    ort.env.wasm.numThreads = threads;
    const opened = await Sampler.load(bytes, ort).catch(explained);
    const { shape, steps, metadata } = opened;
    if (![1, 3].includes(shape[0])) {
      await opened.close();
      throw new Error(`expected images of 1 or 3 channels, got ${shape[0]}`);
    }
    await sampler?.close();
    sampler = opened;
    self.postMessage({ type: "opened", shape, steps, metadata, bytes: bytes.length });
  },

  async draw({ seed, count }) {
    stopped = false;
    const onStep = async (step, steps, first, x) => {
      const pixels = colours(x, sampler.shape);
      self.postMessage({ type: "step", step, steps, first, pixels }, [pixels.buffer]);
      await new Promise((resume) => setTimeout(resume)); // lets a "stop" in
      return !stopped;
    };
    await sampler.draw({ seed, count, onStep });
    self.postMessage({ type: "drawn", stopped });
  },

  async stop() {
    stopped = true;
  },
};

/** A better reason than the runtime's own, where a file of the runtime is missing. */
async function explained(error) {
  for (const address of Object.values(RUNTIME)) {
    const answer = await fetch(address, { method: "HEAD" }).catch(() => null);
    if (answer && !answer.ok) {
      const name = address.split("/").at(-1);
      throw new Error(`${name}, which runs it, cannot be loaded: the server says ${answer.status}`);
    }
  }
  throw error;
}

self.onmessage = async ({ data: { type, ...job } }) => {
  try {
    await jobs[type](job);
  } catch (error) {
    self.postMessage({ type: "failed", what: type, message: error?.message ?? String(error) });
  }
};
