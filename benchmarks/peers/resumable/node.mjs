// A node with `resumable-stream` on a Redis, that does as it is told on its standard input: what `harness/hub_node.py` is
// for us, with the same words. Chunks are the events of the AI SDK's stream, as its documentation has them resumed.
//
//     REDIS_URL=redis://… node node.mjs
import { writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { createResumableStreamContext } from "resumable-stream";

const context = createResumableStreamContext({ waitUntil: (promise) => promise.catch(() => {}) });
const readings = new Map();
let writing;

const now = () => Number(process.hrtime.bigint());
const say = (what, rest) => writeSync(1, `${JSON.stringify({ say: what, ...rest })}\n`);
const STAMP = /@(\d+) /g;
const event = (chunk) => `data: ${typeof chunk === "string" ? chunk : JSON.stringify(chunk)}\n\n`;

function gate() {
  let open;
  const opened = new Promise((resolve) => (open = resolve));
  return { open, opened };
}

// Writes `count` deltas at `rate`, or as fast as they are read; waits at its gates.
async function* deltas(own) {
  await own.go.opened;
  own.began ??= now();
  const began = performance.now();
  for (let number = 0; number < own.count; number++) {
    const due = own.rate && began + (number / own.rate) * 1000 - performance.now();
    if (due > 0) await new Promise((resolve) => setTimeout(resolve, due));
    const delta = `drop ${String(number).padStart(7, "0")} @${now()} `;
    yield event({ type: "text-delta", id: "txt_0", delta });
  }
  if (--own.left === 0) say("written", { began: own.began });
  await own.end.opened;
  yield event({ type: "finish" }) + event("[DONE]");
}

function percentileMs(sorted, share) {
  return sorted.length ? Math.round(sorted[Math.floor(share * (sorted.length - 1))] / 1e3) / 1e3 : 0;
}

// Reads streams to their ends; `open` gives a stream, or none, or fails.
async function read(tag, turns, open, { expect = 0, seen = false } = {}) {
  const reading = { received: {}, ends: {} };
  const late = [];
  readings.set(tag, reading);
  let lacking = turns.length;
  const streams = await Promise.all(turns.map((turn) => open(turn).catch((error) => error)));
  say("following", { tag, turns: streams.filter((stream) => stream instanceof ReadableStream).length });
  const follow = async (turn, stream) => {
    reading.received[turn] = 0;
    if (!(stream instanceof ReadableStream)) return stream instanceof Error ? stream.message : `resumed as ${stream}`;
    let whole = false;
    for await (const text of stream) {
      const at = now();
      const before = reading.received[turn];
      const stamps = [...text.matchAll(STAMP)];
      for (const [, stamp] of stamps) late.push(at - Number(stamp));
      const received = (reading.received[turn] += stamps.length);
      whole ||= text.includes("[DONE]");
      if (seen && received > before) say("seen", { turn, received });
      if (before < expect && expect <= received && --lacking === 0) say("got", { tag, at });
    }
    return whole ? "finished" : "closed without an end";
  };
  await Promise.all(
    turns.map(async (turn, index) => {
      const how = await follow(turn, streams[index]).catch((error) => error.message);
      reading.ends[turn] = { how, at: now() };
    }),
  );
  late.sort((a, b) => a - b);
  say("read", { tag, ...reading, p50_ms: percentileMs(late, 0.5), p99_ms: percentileMs(late, 0.99) });
}

const orders = {
  async write({ turns, count, rate, seen }) {
    const own = (writing = { count, rate, left: turns, go: gate(), end: gate() });
    const ids = Array.from({ length: turns }, () => crypto.randomUUID());
    const made = await Promise.all(
      ids.map((id) => context.createNewResumableStream(id, () => ReadableStream.from(deltas(own)))),
    );
    read("here", ids, async (id) => made[ids.indexOf(id)], { seen });
    say("ready", { turns: ids });
  },
  go: () => writing.go.open(),
  end: () => writing.end.open(),
  follow: ({ turns, tag, expect }) => read(tag, turns, (id) => context.resumeExistingStream(id), { expect }),
  count: ({ tag }) => say("counted", { tag, received: readings.get(tag).received }),
};

say("here", {});
for await (const line of createInterface({ input: process.stdin })) {
  const { do: what, ...rest } = JSON.parse(line);
  orders[what](rest);
}
process.exit(0);
