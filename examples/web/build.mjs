// Puts the page together in dist/: everything it needs, and nothing from elsewhere.

import { build } from "esbuild";
import { access, copyFile, mkdir, rm } from "node:fs/promises";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const RUNTIME = ["ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"];

await rm(here("dist"), { recursive: true, force: true });
await mkdir(here("dist"));
await build({
  entryPoints: ["src/page.js", "src/worker.js"].map(here),
  outdir: here("dist"),
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  conditions: ["onnxruntime-web-use-extern-wasm"], // the runtime's files stay files
});
await copyFile(here("src/index.html"), here("dist/index.html"));
await copyFile(here("src/style.css"), here("dist/style.css"));
for (const name of RUNTIME) {
  await copyFile(here(`node_modules/onnxruntime-web/dist/${name}`), here(`dist/${name}`));
}
try {
  await access(here("model.onnx"));
  await copyFile(here("model.onnx"), here("dist/model.onnx"));
} catch {
  console.warn("There is no model.onnx: make it with `npm run model`, then build again.");
}
