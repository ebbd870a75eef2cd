// node scripts/dawn/browser.mjs DUMP CHROMIUM OUT: replays a dump in Chromium on SwiftShader, without a window, and writes what
// came of it to the file OUT. The page gets its files from a server here, on this machine's own address. Both end when the
// page has answered, or after a quarter of an hour.

import { spawn } from "node:child_process";
import { createReadStream, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { basename, extname, join } from "node:path";

const LIMIT_MS = 900_000;
const OURS = ["page.html", "replay.mjs"];
const TYPES = { ".html": "text/html", ".mjs": "text/javascript" };

const [dump, chromium, out] = process.argv.slice(2);
const profile = mkdtempSync(join(tmpdir(), "replay-"));
let browser;
try {
  writeFileSync(out, await answer());
} catch (error) {
  console.error(`browser: ${error.message}`);
  process.exitCode = 1;
}
if (browser.exitCode === null && browser.kill()) await new Promise((ended) => browser.on("exit", ended));
rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
process.exit();

// What the page posts.
function answer() {
  return new Promise((resolve, reject) => {
    setTimeout(() => reject(new Error(`no answer in ${LIMIT_MS / 1000} s`)), LIMIT_MS);
    const server = createServer((request, response) => {
      if (request.method === "GET") return serve(basename(request.url), response);
      const parts = [];
      request.on("data", (part) => parts.push(part));
      request.on("end", () => {
        response.end();
        const said = Buffer.concat(parts).toString();
        const { error } = JSON.parse(said);
        if (error) reject(new Error(error));
        else resolve(said);
      });
    });
    server.listen(0, "127.0.0.1", () => {
      browser = spawn(chromium, [
        "--headless=new", "--no-sandbox", "--no-first-run", "--disable-extensions", `--user-data-dir=${profile}`,
        "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader",
        `http://127.0.0.1:${server.address().port}/page.html`,
      ], { stdio: "ignore" });
      browser.on("error", reject);
      browser.on("exit", (code) => reject(new Error(`it ended with ${code} before the page had answered`)));
    });
  });
}

function serve(name, response) {
  const file = createReadStream(join(OURS.includes(name) ? import.meta.dirname : dump, name));
  file.on("open", () => response.writeHead(200, { "content-type": TYPES[extname(name)] ?? "application/octet-stream" }));
  file.on("error", () => response.writeHead(404).end());
  file.pipe(response);
}
