// A model's server that speaks OpenAI's chat completions at a pace: what all relays that are measured have behind them.
//
//     node upstream.mjs PORT
//
// The last message is `/pace COUNT RATE`. Each delta says when it was due, in ns since 1970, on an absolute schedule.
// It is on the load's core, with one timer for all streams.
import { createServer } from "node:http";

const TICK_MS = 2;
const streams = new Set();

function deltaText(number, dueMs) {
  return `drop ${String(number).padStart(7, "0")} @${Math.round(dueMs * 1000)}000 `;
}

function event(choice, rest = {}) {
  const choices = choice && [{ index: 0, finish_reason: null, ...choice }];
  const body = { id: "c1", object: "chat.completion.chunk", created: 1, model: "paced", choices: choices ?? [], ...rest };
  return `data: ${JSON.stringify(body)}\n\n`;
}

const now = () => performance.timeOrigin + performance.now();

setInterval(() => {
  const at = now();
  for (const stream of streams) {
    const frames = [];
    while (stream.number < stream.count && stream.began + stream.number * stream.everyMs <= at) {
      const content = deltaText(stream.number, stream.began + stream.number * stream.everyMs);
      frames.push(event({ delta: { content } }));
      stream.number++;
    }
    if (frames.length) stream.response.write(frames.join(""));
    if (stream.number === stream.count) {
      streams.delete(stream);
      const usage = { prompt_tokens: 1, completion_tokens: stream.count, total_tokens: stream.count + 1 };
      stream.response.end(event({ delta: {}, finish_reason: "stop" }) + event(null, { usage }) + "data: [DONE]\n\n");
    }
  }
}, TICK_MS);

function textOf(message) {
  const content = message.content ?? message.parts; // asked without a relay, it is asked as the relays are
  return typeof content === "string" ? content : content.map((part) => part.text).join("");
}

const server = createServer((request, response) => {
  let body = "";
  request.setEncoding("utf8");
  request.on("data", (piece) => (body += piece));
  request.on("end", () => {
    const [, count, rate] = textOf(JSON.parse(body).messages.at(-1)).trim().split(" ");
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(event({ delta: { role: "assistant", content: "" } }));
    const stream = { response, number: 0, count: Number(count), everyMs: 1000 / Number(rate), began: now() };
    streams.add(stream);
    response.on("close", () => streams.delete(stream));
  });
});
server.requestTimeout = 0;
server.keepAliveTimeout = 60_000;
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
process.on("SIGTERM", () => process.exit(0));
