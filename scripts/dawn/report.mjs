// node scripts/dawn/report.mjs NAME FILE: of what came of a replay, for each form how many shaders and launches ran and how
// far off the worst was, what did not run and why, and what failed. Exits with 1 if something did.

import { readFileSync } from "node:fs";

const [name, file] = process.argv.slice(2);
const { adapter, rows } = JSON.parse(readFileSync(file));
console.log(`\n${name}: ${adapter}`);
console.log(line("form", "under", "shaders", "launches", "worst f32", "worst f16", "not run"));
const openings = [...new Set(rows.map((row) => row.opening))];
for (const form of new Set(rows.map((row) => row.form))) {
  for (const opening of openings) {
    const all = rows.filter((row) => row.form === form && row.opening === opening);
    const ran = all.filter((row) => row.launches > 0);
    const reasons = new Map();
    for (const row of all) if (row.notRun) reasons.set(row.notRun, (reasons.get(row.notRun) ?? 0) + 1);
    const why = [...reasons].map(([reason, count]) => `${count}: ${reason}`).join("; ");
    const half = (row) => row.f16.length > 0;
    const launches = ran.reduce((sum, row) => sum + row.launches, 0);
    const worst = (rows) => (rows.length ? Math.max(...rows.map((row) => row.worst ?? Infinity)).toExponential(1) : "-");
    console.log(line(form, opening, `${ran.length} of ${all.length}`, launches,
      worst(ran.filter((row) => !half(row))), worst(ran.filter(half)), why));
  }
}
const failed = rows.filter((row) => row.failures.length > 0);
for (const row of failed) {
  const halves = row.f16.length > 0 ? ` (f16: ${row.f16.join(" ")})` : "";
  for (const { case: name, message } of row.failures) {
    console.log(`FAIL ${row.kernel}/${row.form}${halves}, under ${row.opening}, case ${name}: ${message}`);
  }
}
const idle = rows.filter((row) => row.launches === 0 && !row.notRun && row.failures.length === 0);
for (const row of idle) console.log(`FAIL ${row.kernel}/${row.form}: neither run nor said why not`);
const ran = rows.filter((row) => row.launches > 0).length;
console.log(`${name}: ${ran} of ${rows.length} shaders run, ${failed.length} failed`);
process.exit(failed.length + idle.length + (ran === 0) > 0 ? 1 : 0);

function line(form, opening, shaders, launches, single, half, why) {
  const right = (text, width) => String(text).padStart(width);
  return `${form.padEnd(18)} ${opening.padEnd(14)} ${right(shaders, 9)} ${right(launches, 9)} ${right(single, 10)} ${right(half, 10)}  ${why}`.trimEnd();
}
