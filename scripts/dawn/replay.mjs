// Replays what `vstar validate --dump` wrote on an implementation of WebGPU; in node and in a browser.
// docs/formats.md ("Dump of launches") describes the folder.

// How a device is asked for.
const OPENINGS = {
  "default limits": () => ({}),
  "own limits": (adapter, features) => ({
    requiredFeatures: features.filter((feature) => adapter.features.has(feature)),
    requiredLimits: ownLimits(adapter),
  }),
};

const MAX_GROUPS = 65535;

// Replays all launches under each opening. `dump` has the `manifest`, all `words`, and `text(file)`, which gives a shader.
// Returns the adapter's name and a row for each shader and opening: how often it ran, its worst error and failures, or the
// reason for which it did not.
export async function replay(gpu, dump) {
  const adapter = await gpu.requestAdapter();
  if (!adapter) throw new Error("no adapter");
  const { vendor, architecture, device, description } = adapter.info;
  const rows = [];
  for (const [opening, descriptor] of Object.entries(OPENINGS)) {
    // An adapter gives one device.
    const adapter = await gpu.requestAdapter();
    const features = [...new Set(dump.manifest.shaders.flatMap((shader) => shader.features))];
    const opened = await adapter.requestDevice(descriptor(adapter, features));
    const player = new Player(opened, adapter, dump);
    await player.control();
    for (const launch of dump.manifest.launches) await player.play(launch);
    for (const row of player.rows) rows.push({ opening, ...row });
    opened.destroy();
  }
  return { adapter: [vendor, architecture, device, description].filter(Boolean).join(" "), rows };
}

function ownLimits(adapter) {
  const limits = {};
  for (const name in adapter.limits) {
    if (typeof adapter.limits[name] === "number") limits[name] = adapter.limits[name];
  }
  return limits;
}

class Player {
  constructor(device, adapter, { manifest, words, text }) {
    Object.assign(this, { device, manifest, words, text });
    this.pipelines = new Map();
    // The number of a dispatch's first workgroup (shaders/shared/grid.wgsl).
    this.firstLayout = device.createBindGroupLayout({
      entries: [{ binding: 0, visibility: GPUShaderStage.COMPUTE, buffer: { type: "uniform" } }],
    });
    this.rows = manifest.shaders.map((shader) => ({
      kernel: shader.kernel,
      form: shader.form,
      f16: shader.bindings.filter((b) => b.type === "f16").map((b) => b.name),
      launches: 0,
      worst: 0,
      failures: [],
      notRun: lacking(shader, device, adapter.info),
    }));
  }

  // A comparison that cannot fail proves nothing: one corrupted element must fail it, and so must a launch left out.
  async control() {
    const [launch, run] = await this.firstThatRuns();
    const shader = this.manifest.shaders[run.shader];
    const errors = async (run, corrupt) => {
      const [output] = await this.outputs(launch, [run]);
      return shader.bindings.flatMap((binding, i) => {
        if (!launch.buffers[i].after) return [];
        const want = this.contents(launch.buffers[i].after).slice();
        if (corrupt) want[want.length >> 1] ^= ~0;
        return [difference(binding.type, want, output[i])];
      });
    };
    const fail = (errors) => errors.some((error) => error > this.manifest.tolerance.f32);
    if (!fail(await errors(run, true))) throw new Error("control: a corrupted element passes the comparison");
    if (!fail(await errors({ ...run, groups: 0 }, false))) throw new Error("control: a launch left out passes");
  }

  // A launch that changes what its buffers hold, in a form that compiles here.
  async firstThatRuns() {
    const moves = (b) => b.after && JSON.stringify(b.after) !== JSON.stringify(b.before);
    for (const launch of this.manifest.launches.filter((l) => l.buffers.some(moves))) {
      for (const run of launch.runs.filter((run) => !this.rows[run.shader].notRun)) {
        const made = await this.pipeline(run.shader).catch(() => null);
        if (made) return [launch, run];
      }
    }
    throw new Error("control: no launch of this dump can run here");
  }

  // Runs a launch in every form that this device has, and compares.
  async play(launch) {
    const runs = [];
    for (const run of launch.runs) {
      const row = this.rows[run.shader];
      if (row.notRun || row.failures.length > 0) continue;
      try {
        await this.pipeline(run.shader);
        runs.push(run);
      } catch (error) {
        this.fail(launch, run, error.message);
      }
    }
    if (runs.length === 0) return;
    try {
      const outputs = await this.outputs(launch, runs);
      runs.forEach((run, at) => this.compare(launch, run, outputs[at]));
    } catch (error) {
      for (const run of runs) this.fail(launch, run, error.message);
    }
  }

  fail(launch, run, message) {
    this.rows[run.shader].failures.push({ case: launch.case, message: oneLine(message) });
  }

  compare(launch, run, output) {
    const row = this.rows[run.shader];
    row.launches += 1;
    this.manifest.shaders[run.shader].bindings.forEach((binding, i) => {
      if (!launch.buffers[i].after) return;
      const want = this.contents(launch.buffers[i].after);
      const error = difference(binding.type, want, output[i]);
      row.worst = Math.max(row.worst, error);
      const allowed = { f32: this.manifest.tolerance.f32, f16: this.manifest.tolerance.f16, u32: 0 }[binding.type];
      if (error > allowed) {
        const where = worstElement(binding.type, want, output[i]);
        this.fail(launch, run, `output \`${binding.name}\` differs by ${error.toExponential(1)} (${where})`);
      }
    });
  }

  // The words of a buffer.
  contents({ from, words, times }) {
    const part = this.words.subarray(from, from + words);
    if (times === 1) return part;
    const all = new Uint32Array(words * times);
    for (let at = 0; at < all.length; at += words) all.set(part, at);
    return all;
  }

  // The pipeline of a shader, made once.
  async pipeline(index) {
    if (!this.pipelines.has(index)) this.pipelines.set(index, await this.makePipeline(this.manifest.shaders[index]));
    return this.pipelines.get(index);
  }

  async makePipeline(shader) {
    const buffer = (binding, type) => ({ binding, visibility: GPUShaderStage.COMPUTE, buffer: { type } });
    const storage = { read: "read-only-storage", read_write: "storage" };
    const bindGroupLayout = this.device.createBindGroupLayout({
      entries: [buffer(0, "uniform"), ...shader.bindings.map((b) => buffer(b.binding, storage[b.access]))],
    });
    this.device.pushErrorScope("validation");
    const module = this.device.createShaderModule({ code: await this.text(shader.file) });
    const info = await module.getCompilationInfo();
    await this.device.popErrorScope();
    const errors = info.messages.filter((m) => m.type === "error");
    if (errors.length > 0) {
      throw new Error(errors.map((m) => `${shader.file}:${m.lineNum}:${m.linePos}: ${m.message}`).join("; "));
    }
    return this.device.createComputePipelineAsync({
      layout: this.device.createPipelineLayout({ bindGroupLayouts: [bindGroupLayout, this.firstLayout] }),
      compute: { module, entryPoint: shader.entry, constants: shader.constants },
    });
  }

  // Runs a launch in several forms, each on buffers of its own, in one submission. For each form and binding the words
  // that were written; null where the binding is only read.
  async outputs(launch, runs) {
    const { device } = this;
    device.pushErrorScope("validation");
    device.pushErrorScope("out-of-memory");
    const encoder = device.createCommandEncoder();
    const owned = [];
    const make = (usage, words) => {
      const buffer = device.createBuffer({ size: 4 * words.length, usage: usage | GPUBufferUsage.COPY_DST });
      device.queue.writeBuffer(buffer, 0, words);
      owned.push(buffer);
      return buffer;
    };
    const storage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC;
    // As wgpu binds them: a slot of 256 bytes.
    const slot = new Uint32Array(64);
    slot.set(launch.parameters);
    const uniform = make(GPUBufferUsage.UNIFORM, slot);
    const read = launch.buffers.map((b) => (b.after ? null : make(storage, this.contents(b.before))));
    const results = [];
    for (const run of runs) {
      const pipeline = await this.pipeline(run.shader);
      const bindings = this.manifest.shaders[run.shader].bindings;
      const buffers = launch.buffers.map((b, i) => read[i] ?? make(storage, this.contents(b.before)));
      const bound = bindings.map((b, i) => ({ binding: b.binding, resource: { buffer: buffers[i] } }));
      const pass = encoder.beginComputePass();
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, device.createBindGroup({
        layout: pipeline.getBindGroupLayout(0),
        entries: [{ binding: 0, resource: { buffer: uniform } }, ...bound],
      }));
      // No more workgroups at once than any device takes.
      for (let first = 0; first < run.groups; first += MAX_GROUPS) {
        const number = make(GPUBufferUsage.UNIFORM, Uint32Array.of(first, 0, 0, 0));
        pass.setBindGroup(1, device.createBindGroup({
          layout: this.firstLayout,
          entries: [{ binding: 0, resource: { buffer: number } }],
        }));
        pass.dispatchWorkgroups(Math.min(MAX_GROUPS, run.groups - first));
      }
      pass.end();
      results.push(buffers.map((buffer, i) => {
        if (read[i]) return null;
        const usage = GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ;
        const result = device.createBuffer({ size: buffer.size, usage });
        owned.push(result);
        encoder.copyBufferToBuffer(buffer, 0, result, 0, buffer.size);
        return result;
      }));
    }
    device.queue.submit([encoder.finish()]);
    for (const scope of ["out-of-memory", "validation"]) {
      const error = await device.popErrorScope();
      if (error) throw new Error(`${scope}: ${error.message}`);
    }
    const words = async (buffer) => {
      if (!buffer) return null;
      await buffer.mapAsync(GPUMapMode.READ);
      return new Uint32Array(buffer.getMappedRange()).slice();
    };
    const outputs = await Promise.all(results.map((buffers) => Promise.all(buffers.map(words))));
    for (const buffer of owned) buffer.destroy();
    return outputs;
  }
}

// What a device has not that a shader needs, if there is such a thing.
function lacking(shader, device, info) {
  if (shader.features.some((name) => name.startsWith("wgpu-"))) return "WebGPU has no such feature";
  const feature = shader.features.find((name) => !device.features.has(name));
  if (feature) return `needs ${feature}`;
  if (info.subgroupMinSize < shader.least_subgroup) return `needs subgroups of ${shader.least_subgroup}`;
  return null;
}

function oneLine(text) {
  return text.split("\n").map((line) => line.trim()).filter(Boolean).join(" ");
}

// As src/device/lockstep.rs has it. Of integers the fraction that differ; else the relative error by the Euclidean norm,
// where equal bits count as equal, and a NaN or an infinity on one side only is infinite.
export function difference(type, want, got) {
  if (type === "u32") return want.reduce((wrong, w, i) => wrong + (w !== got[i]), 0) / want.length;
  const [w, g] = [floats(type, want), floats(type, got)];
  let [difference, norm] = [0, 0];
  for (let i = 0; i < w.length; i++) {
    if (!Object.is(w[i], g[i])) {
      if (!Number.isFinite(w[i]) || !Number.isFinite(g[i])) return Infinity;
      difference += (w[i] - g[i]) ** 2;
    }
    // Mask constants (about -1e30) are equal on both sides; they must not drown the norm.
    if (Number.isFinite(w[i]) && Math.abs(w[i]) < 1e29) norm += w[i] ** 2;
  }
  return difference === 0 ? 0 : Math.sqrt(difference / Math.max(norm, 1e-60));
}

// The element that differs most.
function worstElement(type, want, got) {
  const [w, g] = [floats(type, want), floats(type, got)];
  const size = (i) => (Object.is(w[i], g[i]) ? 0 : Number.isNaN(w[i] - g[i]) ? Infinity : Math.abs(w[i] - g[i]));
  let worst = 0;
  for (let i = 1; i < w.length; i++) if (size(i) > size(worst)) worst = i;
  return `element ${worst}: ${w[worst]} on the CPU, ${g[worst]} here`;
}

function floats(type, words) {
  if (type === "u32") return words;
  if (type === "f32") return new Float32Array(words.buffer, words.byteOffset, words.length);
  const halves = new Uint16Array(words.buffer, words.byteOffset, 2 * words.length);
  return Float32Array.from(halves, half);
}

function half(bits) {
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  const size = exponent === 31 ? (fraction ? NaN : Infinity)
    : exponent === 0 ? fraction * 2 ** -24
    : (1 + fraction / 1024) * 2 ** (exponent - 15);
  return bits & 0x8000 ? -size : size;
}
