import { parseSeed } from "./noise.js";
import { grid } from "./picture.js";

const MODEL = "model.onnx";
const SAVED_ROWS = 96; // a saved image of fewer rows of pixels is enlarged towards this
const GREY = "rgb(128 128 128)";
const EMPTY = "rgb(24 24 24)";
const MOST_THREADS = 4;
const SECONDS_WORTH = 16 * 16 * 16; // pixels that a laptop draws within seconds
const NAMES = { ddim: "DDIM", ddpm: "DDPM", "dpm++": "DPM-Solver++" };

const element = (id) => document.getElementById(id);
const seedBox = element("seed");
const countBox = element("count");
const drawButton = element("draw");
const randomButton = element("random");
const fileBox = element("file");
const saveButton = element("save");
const progress = element("progress");
const canvas = element("canvas");
const brush = canvas.getContext("2d");

// Threads of WebAssembly share memory, which browsers allow to isolated pages alone (serve.mjs).
// Half of the processors that a browser counts are often the second threads of the others.
const threads = window.crossOriginIsolated
  ? Math.min(MOST_THREADS, Math.ceil(navigator.hardwareConcurrency / 2))
  : 1;

let model = null; // what the worker tells of the open sampler
let job = null; // what is being drawn
let chosen = false; // whether somebody said how many images

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
worker.onmessage = ({ data: { type, ...told } }) => reports[type](told);
worker.onerror = (event) => {
  event.preventDefault();
  complain(`The page's program cannot run here: ${event.message || "a file of it is missing"}.`);
};

const reports = {
  opened(told) {
    model = told;
    const { metadata, steps, bytes } = model;
    const name = NAMES[metadata.sampler] ?? metadata.sampler;
    const trained = metadata.dataset ? ` trained on ${metadata.dataset.toUpperCase()}` : "";
    const pruned = metadata.sparsity
      ? `${(100 * metadata.sparsity).toFixed(0)} % of its weights are pruned away; the rest draws`
      : "It draws";
    element("about").textContent = `A diffusion model${trained}. ${pruned} here, in your browser.`;
    element("facts").textContent = [
      `${(bytes / 1e6).toFixed(1)} MB`,
      `${steps} steps${name ? ` of ${name}` : ""}`,
      threads === 1 ? "one thread" : `${threads} threads`,
      "nothing leaves this page",
    ].join(" · ");
    if (!chosen) countBox.value = affordable(model.shape);
    blank();
    rest("Ready.");
  },

  step({ step, steps, first, pixels }) {
    show(pixels, first);
    progress.value = step / steps;
    job.pace = (performance.now() - job.begun) / step;
    const left = Math.ceil((job.pace * (steps - step)) / 1000);
    say(`Step ${step} of ${steps} · ${job.pace.toFixed(0)} ms a step · ${left} s left`);
  },

  drawn({ stopped }) {
    if (stopped) return rest("Stopped.");
    const seconds = ((performance.now() - job.begun) / 1000).toFixed(1);
    canvas.setAttribute("aria-label", `${images(job.count)} drawn from seed ${job.seed}`);
    saveButton.disabled = false;
    progress.value = 1;
    rest(`${images(job.count)} in ${seconds} s · ${job.pace.toFixed(0)} ms a step`);
  },

  failed({ what, message }) {
    const doing = what === "open" ? "This sampler cannot be used" : "Drawing failed";
    complain(`${doing}: ${message.replace(/\.$/, "")}.`);
  },
};

/** The most images among the choices that are drawn within seconds. */
function affordable([, height, width]) {
  const counts = [...countBox.options].map(({ value }) => Number(value));
  const few = counts.filter((count) => count * height * width <= SECONDS_WORTH);
  return String(few.at(-1) ?? counts[0]);
}

const images = (count) => (count === 1 ? "1 image" : `${count} images`);

function say(text) {
  element("status").textContent = text;
}

/** Say what went wrong, and go on where a model is there. */
function complain(text) {
  element("error").textContent = text;
  element("error").hidden = false;
  if (progress.position < 0) progress.value = 0;
  rest("");
}

/** Nothing is being done: the controls are free. */
function rest(text) {
  element("status").setAttribute("aria-busy", "false");
  say(text);
  job = null;
  drawButton.textContent = "Draw";
  drawButton.disabled = !model;
  for (const control of [seedBox, countBox, randomButton, fileBox]) control.disabled = false;
}

function draw() {
  const seed = parseSeed(seedBox.value);
  seedBox.setAttribute("aria-invalid", String(seed === null));
  if (seed === null) {
    complain("A seed is a whole number from 0 to 18446744073709551615.");
    seedBox.focus();
    return;
  }
  const count = Number(countBox.value);
  element("error").hidden = true;
  blank(count);
  job = { seed, count, begun: performance.now(), pace: 0 };
  drawButton.textContent = "Stop";
  for (const control of [seedBox, countBox, randomButton, fileBox]) control.disabled = true;
  progress.value = 0;
  say("Drawing …");
  element("status").setAttribute("aria-busy", "true"); // not every step is to be read aloud
  history.replaceState(null, "", `#seed=${seed}&images=${count}`);
  worker.postMessage({ type: "draw", seed, count });
}

/** An empty canvas for `count` images. */
function blank(count = Number(countBox.value)) {
  const { width, height, place } = grid(count, model.shape);
  canvas.width = width;
  canvas.height = height;
  canvas.setAttribute("aria-label", "Nothing drawn yet");
  brush.fillStyle = EMPTY;
  for (let index = 0; index < count; index++) {
    const { left, top } = place(index);
    brush.fillRect(left, top, model.shape[2], model.shape[1]);
  }
  saveButton.disabled = true;
  fit();
}

/** Put images on the canvas; `pixels` are theirs from image `first` on. */
function show(pixels, first) {
  const [, height, width] = model.shape;
  const { place } = grid(job.count, model.shape);
  const each = 4 * height * width;
  for (let at = 0; at < pixels.length; at += each) {
    const { left, top } = place(first + at / each);
    brush.putImageData(new ImageData(pixels.slice(at, at + each), width, height), left, top);
  }
}

/** Enlarge the canvas by a whole factor, so that pixels stay square and alike. */
function fit() {
  const { clientWidth } = element("frame");
  const room = clientWidth - 2 * parseFloat(getComputedStyle(element("frame")).paddingLeft);
  const dots = window.devicePixelRatio;
  const factor = Math.max(1, Math.floor((room * dots) / canvas.width)) / dots;
  canvas.style.width = `${canvas.width * factor}px`;
  canvas.style.height = `${canvas.height * factor}px`;
}

/** The picture that `sparse-ddpm sample` writes: enlarged, on grey. */
function save() {
  const factor = Math.max(1, Math.floor(SAVED_ROWS / model.shape[1]));
  const picture = new OffscreenCanvas(canvas.width * factor, canvas.height * factor);
  const ink = picture.getContext("2d");
  ink.imageSmoothingEnabled = false;
  ink.fillStyle = GREY;
  ink.fillRect(0, 0, picture.width, picture.height);
  ink.drawImage(canvas, 0, 0, picture.width, picture.height);
  picture.convertToBlob().then((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `digits-seed-${seedBox.value.trim()}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href));
  });
}

/** Hand a sampler to the worker. */
async function open(source) {
  element("error").hidden = true;
  drawButton.disabled = true;
  progress.removeAttribute("value");
  say("Loading the model …");
  try {
    const bytes = new Uint8Array(await source());
    worker.postMessage({ type: "open", bytes, threads }, [bytes.buffer]);
  } catch (error) {
    complain(error.message);
  }
}

async function fetched() {
  const hint = "Make it with “npm run model”, build the page again, or open a sampler file below.";
  let answer;
  try {
    answer = await fetch(MODEL);
  } catch {
    throw new Error(`${MODEL} cannot be loaded: the server does not answer.`);
  }
  if (!answer.ok) {
    throw new Error(`${MODEL} cannot be loaded: the server says ${answer.status}. ${hint}`);
  }
  return answer.arrayBuffer();
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (job) worker.postMessage({ type: "stop" });
  else draw();
});
randomButton.addEventListener("click", () => {
  seedBox.value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
  if (!drawButton.disabled) draw();
});
fileBox.addEventListener("change", ({ target: { files } }) => {
  if (files.length) open(() => files[0].arrayBuffer());
});
saveButton.addEventListener("click", save);
new ResizeObserver(fit).observe(element("frame"));

const wish = new URLSearchParams(location.hash.slice(1));
if (wish.has("seed")) seedBox.value = wish.get("seed");
countBox.addEventListener("change", () => {
  chosen = true;
  if (model && saveButton.disabled) blank();
});
if ([...countBox.options].some(({ value }) => value === wish.get("images"))) {
  countBox.value = wish.get("images");
  chosen = true;
}
open(fetched);
