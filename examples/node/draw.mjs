// Digits from an exported sampler: node draw.mjs SAMPLER.onnx [SEED] [COUNT] [PICTURE.png]

import { writeFile } from "node:fs/promises";
import * as ort from "onnxruntime-node";
import { normal } from "../web/src/noise.js";
import { png } from "./png.mjs";

const [path, seed = "0", count = "8", output = "digits.png"] = process.argv.slice(2);
if (!path) throw new Error("expected the path of a file of sparse-ddpm export --what sampler");
const session = await ort.InferenceSession.create(path);

const [, ...shape] = session.inputMetadata.find(({ name }) => name === "noise").shape;
const indices = [...Array(Number(count)).keys()];
const noise = (step) => normal(BigInt(seed), indices, step, shape[0] * shape[1] * shape[2]);
const inputs = { noise: new ort.Tensor("float32", noise(0), [indices.length, ...shape]) };

const { images } = await session.run(inputs);
await writeFile(output, png(images));
console.log(`${output}: ${count} images from seed ${seed}`);
