#!/usr/bin/env node
// What a web app does with inbox-daemon: send a job, wait, fetch the answers, match them.
//
//     web_app.mjs health             say whether the service is up, and has room
//     web_app.mjs ask NAME           ask each line of stdin as the job NAME; print the answers
//     web_app.mjs order NAME ORDER   give an order: cancel, pause, resume, redrive, purge
//
// Only Node 18 or newer and rsync are needed.  In the environment: INBOX and OUTBOX, as
// rsync names the two folders (by default the two keys of deploy/sender/ssh_config; on the
// same machine /srv/inbox-daemon/inbox/ and .../outbox/); JOBS, the folder for what is sent
// and fetched; POLL_S, the seconds between two looks.  Each command may be repeated after any
// failure: nothing is asked twice.
//
// docs/SENDERS.md explains each part.  examples/web_app.py is the same in Python.

import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { text } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";

const INBOX = process.env.INBOX ?? "gpu-inbox:";
const OUTBOX = process.env.OUTBOX ?? "gpu-outbox:";
const JOBS = process.env.JOBS ?? "jobs";
const POLL_MS = 1000 * Number(process.env.POLL_S ?? 5);
// What may end otherwise the next time; the other reasons would come again.
const WORTH_ANOTHER_TRY = new Set(["max_attempts", "timeout"]);
const TRIES = 2;

// A job that ends without results; the message says why.
class JobError extends Error {}
// What was looked for is not there yet; the message says why.
class NotYet extends Error {}
// A transfer that did not get through.
class RsyncError extends Error {}

const sha256 = (data) => createHash("sha256").update(data).digest("hex");

// -- writing a job ---------------------------------------------------------------------------

// Make one line; by its custom_id you will know the answer again.
function question(customId, content) {
  const body = { messages: [{ role: "user", content }], max_tokens: 200 };
  const url = "/v1/chat/completions";
  return JSON.stringify({ custom_id: customId, method: "POST", url, body }) + "\n";
}

// Write a job's file; the same name with the same bytes is the same job.
async function writeJob(name, lines) {
  await mkdir(JOBS, { recursive: true });
  const path = join(JOBS, `${name}.jsonl`);
  await writeFile(path, lines.join(""));
  return path;
}

// -- rsync, both ways ------------------------------------------------------------------------

// Run rsync; what does not get through throws, and may be repeated.
function rsync(...words) {
  return new Promise((resolve, reject) => {
    const child = spawn("rsync", ["--timeout=60", ...words], { stdio: ["ignore", 2, 2] });
    child.on("error", reject);
    child.on("close", (code) =>
      code === 0 ? resolve() : reject(new RsyncError(`rsync ended with ${code}`)),
    );
  });
}

// Copy what the patterns name out of outbox/; what is not there is no error.
async function pull(folder, ...patterns) {
  await mkdir(folder, { recursive: true });
  const chosen = patterns.map((pattern) => `--include=${pattern}`);
  const options = ["--recursive", "--times", "--checksum", "--delete"];
  await rsync(...options, ...chosen, "--exclude=*", OUTBOX, `${folder}/`);
}

// Read a document that may not be there yet.
async function readJson(path) {
  return existsSync(path) ? JSON.parse(await readFile(path, "utf8")) : null;
}

// Look again and again until it is there; a transfer that failed is repeated, too.
async function waitFor(look) {
  for (let told = ""; ; ) {
    try {
      return await look();
    } catch (error) {
      if (!(error instanceof NotYet || error instanceof RsyncError)) throw error;
      if (error.message !== told) console.error(`waiting: ${error.message}`);
      told = error.message;
    }
    await sleep(POLL_MS);
  }
}

// -- the service's health --------------------------------------------------------------------

// Fetch the service's health; null before its first start.
async function readHealth() {
  await pull(join(JOBS, ".health"), "/status.json");
  return readJson(join(JOBS, ".health", "status.json"));
}

// Return why the service does not work; null if it does.
function whatIsWrong(health, now) {
  if (health === null) return "the service was never started";
  const age = now - health.written_at;
  if (Math.abs(age) > health.stale_after_s) { // from the future: a clock was set back since
    return `the service is down: its health was written ${age.toFixed()} s ago`;
  }
  return health.status === "unhealthy" ? health.reasons.join("; ") : null;
}

// Return why a job of that many requests would be refused for now; null if it has room.
function whatIsFull(health, requests) {
  const { queue, limits } = health;
  if (queue.queue_available < 1) return "the queue is full";
  if (queue.total_queued_requests + requests > limits.max_total_queued_requests) {
    return "too many requests are queued";
  }
  return null;
}

// Throw NotYet unless a job of that many requests would be taken: back-pressure.
async function lookForRoom(requests) {
  const health = await readHealth();
  const problem = whatIsWrong(health, Date.now() / 1000) ?? whatIsFull(health, requests);
  if (problem !== null) throw new NotYet(problem);
}

// -- sending ---------------------------------------------------------------------------------

// Send a job behind its marker, so that it is taken as soon as it is whole.
async function send(path) {
  const data = await readFile(path);
  const marker = `${path}.ready`;
  await writeFile(marker, JSON.stringify({ bytes: data.length, sha256: sha256(data) }));
  await rsync("--chmod=F640", marker, INBOX);
  await rsync("--chmod=F640", path, INBOX);
}

// Send a control file: NAME.cancel, NAME.pause and so on; ALL is every job.
async function giveOrder(name, order) {
  await mkdir(JOBS, { recursive: true });
  const path = join(JOBS, `${name}.${order}`);
  await writeFile(path, "");
  await rsync("--chmod=F640", path, INBOX);
}

// -- fetching --------------------------------------------------------------------------------

// Fetch a job's status alone; null while it has no folder in outbox/.
async function readStatus(name) {
  const part = join(JOBS, `.${name}.part`);
  await pull(part, `/${name}/`, `/${name}/status.json`);
  return readJson(join(part, name, "status.json"));
}

// Fetch a job's folder under a hidden name, and show it once it is whole.
async function fetchResults(name) {
  const part = join(JOBS, `.${name}.part`);
  const whole = join(JOBS, name);
  if (!existsSync(whole)) {
    await pull(part, `/${name}/***`);
    if (!(await isWhole(join(part, name)))) {
      throw new NotYet(`the results of ${name} are not whole`);
    }
    await rename(join(part, name), whole);
  }
  return whole;
}

// Return whether each file is there with the checksum that status.json gives.
async function isWhole(folder) {
  const status = await readJson(join(folder, "status.json"));
  if (status === null) return false;
  for (const [file, checksum] of Object.entries(status.checksums ?? {})) {
    const path = join(folder, file);
    if (!existsSync(path) || sha256(await readFile(path)) !== checksum) return false;
  }
  return true;
}

// Split at newlines alone: readline would also split inside of an answer, at U+2028.
async function readLines(path) {
  return existsSync(path) ? (await readFile(path, "utf8")).split("\n").slice(0, -1) : [];
}

// Every outcome of a job by its custom_id: its answer, or its error.
async function readOutcomes(folder) {
  const results = await readLines(join(folder, "output.jsonl"));
  const errors = await readLines(join(folder, "errors.jsonl"));
  const outcomes = [...results, ...errors].map((line) => JSON.parse(line));
  return new Map(outcomes.map((outcome) => [outcome.custom_id, outcome]));
}

// -- the whole way ---------------------------------------------------------------------------

// Send a job when there is room, wait, and return the folder of its results.
async function runJob(path) {
  const name = basename(path, ".jsonl");
  const data = await readFile(path);
  const requests = data.toString().split("\n").length - 1;
  const done = await readJson(join(JOBS, name, "status.json"));
  if (done?.sha256 === sha256(data)) return join(JOBS, name);
  const before = done ?? (await waitFor(() => readStatus(name)));
  let refused = before?.status === "failed" ? before.id : null;
  let status;
  for (;;) {
    await waitFor(() => lookForRoom(requests));
    await send(path);
    status = await waitFor(() => lookForAnswer(name, refused));
    if (status.sha256 !== null && status.sha256 !== sha256(data)) {
      throw new JobError(`another file was sent as ${name}: choose another name`);
    }
    if (status.status !== "failed") break;
    if (!status.retryable) throw new JobError(status.message);
    console.error(`waiting: ${status.message}`);
    refused = status.id;
    await sleep(POLL_MS);
  }
  // Its results were fetched away before.
  if (status.output_file_id === null) throw new JobError(status.message);
  return waitFor(() => fetchResults(name));
}

// Return a job's status; throw NotYet while there is none but the refusal `seen`.
async function lookForAnswer(name, seen) {
  const status = await readStatus(name);
  if (status === null || status.id === seen) throw new NotYet(`${name} is not answered yet`);
  return status;
}

// Ask everything; what failed for a passing reason is asked again as another job.
async function ask(name, lines) {
  let path = await writeJob(name, lines);
  const outcomes = new Map();
  for (let attempt = 1; ; attempt += 1) {
    const folder = await runJob(path);
    for (const [customId, outcome] of await readOutcomes(folder)) outcomes.set(customId, outcome);
    const again = await linesToRetry(folder, outcomes);
    if (again.length === 0 || attempt === TRIES) return outcomes;
    path = await writeJob(`${name}.again-${attempt}`, again);
  }
}

// The lines of retry.jsonl that are worth another try, as they are.
async function linesToRetry(folder, outcomes) {
  const codeOf = (line) => outcomes.get(JSON.parse(line).custom_id).error.code;
  const lines = await readLines(join(folder, "retry.jsonl"));
  return lines.filter((line) => WORTH_ANOTHER_TRY.has(codeOf(line))).map((line) => line + "\n");
}

// Run one command; 0 done, 1 refused or down, 3 some questions have no answer.
async function main([command, name, order]) {
  if (command === "health") {
    const health = await readHealth();
    const wrong = whatIsWrong(health, Date.now() / 1000);
    console.log(wrong ?? whatIsFull(health, 1) ?? "up");
    return wrong === null ? 0 : 1;
  }
  if (command === "order" && name && order) {
    await giveOrder(name, order);
    return 0;
  }
  if (command === "ask" && name) {
    const texts = (await text(process.stdin)).split("\n");
    const asked = texts.map((line, index) => [`q${index + 1}`, line]).filter(([, line]) => line);
    const outcomes = await ask(name, asked.map(([customId, line]) => question(customId, line)));
    for (const [customId] of asked) console.log(JSON.stringify(shown(outcomes.get(customId))));
    return [...outcomes.values()].some((outcome) => outcome.error !== null) ? 3 : 0;
  }
  console.error("usage: web_app.mjs health | ask NAME | order NAME ORDER");
  return 64;
}

// What the user of the web app sees of an outcome.
function shown({ custom_id: id, response, error }) {
  if (error !== null) return { id, error: error.message };
  return { id, answer: response.body.choices[0].message.content };
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof JobError || error instanceof RsyncError)) throw error;
  console.error(error.message);
  process.exitCode = 1;
}
