// Serves dist/ on this machine, isolated, so that the browser allows threads. Any other static
// server does as well; the page then draws with one thread.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const PORT = Number(process.env.PORT ?? 8000);
const FOLDER = fileURLToPath(new URL("dist", import.meta.url));
const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".mjs": "text/javascript; charset=utf-8",
  ".wasm": "application/wasm",
};
const ISOLATED = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

async function answer(request, response) {
  try {
    const { pathname } = new URL(request.url, "http://localhost");
    const name = normalize(decodeURIComponent(pathname)).replace(/\/$/, "/index.html");
    const content = await readFile(join(FOLDER, name));
    const type = TYPES[extname(name)] ?? "application/octet-stream";
    response.writeHead(200, { "Content-Type": type, ...ISOLATED }).end(content);
  } catch {
    response.writeHead(404, ISOLATED).end("not found");
  }
}

const server = createServer(answer).listen(PORT, "127.0.0.1", () => {
  console.log(`http://localhost:${server.address().port}`);
});
