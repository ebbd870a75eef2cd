// node scripts/dawn/node.mjs DUMP WEBGPU OUT: replays a dump in Dawn, by the npm package `webgpu` unpacked at WEBGPU, and
// writes what came of it to the file OUT.

import { readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { replay } from "./replay.mjs";

const [dump, webgpu, out] = process.argv.slice(2);
const { create, globals } = await import(pathToFileURL(resolve(webgpu, "index.js")));
Object.assign(globalThis, globals);
const read = (name) => readFileSync(join(dump, name));
const manifest = JSON.parse(read("manifest.json"));
const bytes = read(manifest.words);
const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
const said = await replay(create([]), { manifest, words, text: (file) => read(file).toString() });
writeFileSync(out, JSON.stringify(said));
// Dawn's own threads would keep the process.
process.exit(0);
