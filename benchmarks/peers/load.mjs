// An independent load generator to check `penstock bench` against: Node's global fetch, and a parser of its own.
//
//     node load.mjs tokens|fanout URL CONNECTIONS RATE RAMP_S SETTLE_S DURATION_S
//
// It does what the scenarios of these names do, and prints one line of JSON.
const [scenario, url, ...numbers] = process.argv.slice(2);
const [connections, rate, rampS, settleS, durationS] = numbers.map(Number);

const now = () => performance.timeOrigin + performance.now();
const sleepUntil = (ms) => new Promise((done) => setTimeout(done, Math.max(0, ms - now())));

const run = Math.random().toString(36).slice(2);
const began = now();
const from = began + (rampS + settleS) * 1000;
const until = from + durationS * 1000;
const lags = [];
let opened = 0;
const aborter = new AbortController();

function take(event, at) {
  if (!event.includes("data:") || /^event: ?(snapshot|message)$/m.test(event)) return;
  for (const [, due] of event.matchAll(/@(\d{19})/g)) {
    if (at >= from && at < until) lags.push(at - Number(BigInt(due) / 1000n) / 1000);
  }
}

async function read(response) {
  if (!response.ok) throw new Error(`status ${response.status}`);
  opened += 1;
  const decoder = new TextDecoder();
  let rest = "";
  for await (const piece of response.body) {
    const at = now();
    const events = (rest + decoder.decode(piece, { stream: true })).replaceAll("\r\n", "\n").split("\n\n");
    rest = events.pop();
    for (const event of events) take(event, at);
  }
}

function ask(chat, count) {
  const text = `/pace ${count} ${rate}`;
  return fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ id: chat, messages: [{ id: "u1", role: "user", parts: [{ type: "text", text }] }] }),
    signal: aborter.signal,
  });
}

async function connection(number) {
  await sleepUntil(began + (number * rampS * 1000) / connections);
  if (scenario === "fanout") return read(await fetch(`${url}/${run}/watch`, { signal: aborter.signal }));
  const count = Math.floor(((until - now()) / 1000) * rate);
  return read(await ask(`${run}-${number}`, count));
}

async function produce() {
  await sleepUntil(began + (rampS + settleS / 2) * 1000);
  const response = await ask(run, Math.ceil(((until - now()) / 1000) * rate));
  for await (const piece of response.body) void piece;
}

const work = Array.from({ length: connections }, (_, number) => connection(number));
if (scenario === "fanout") work.push(produce());
const errors = {};
const all = Promise.all(
  work.map((one) =>
    one.catch((error) => {
      if (!aborter.signal.aborted) errors[error.cause?.code ?? error.message] = (errors[error.message] ?? 0) + 1;
    }),
  ),
);
await sleepUntil(until + 200);
aborter.abort();
await all;

lags.sort((a, b) => a - b);
const percentile = (share) => lags[Math.min(lags.length - 1, Math.floor(lags.length * share))];
const { user, system } = process.cpuUsage();
console.log(
  JSON.stringify({
    opened,
    events: lags.length,
    events_per_s: lags.length / durationS,
    p50_ms: percentile(0.5),
    p99_ms: percentile(0.99),
    cpu_s: (user + system) / 1e6,
    errors,
  }),
);
process.exit(0);
