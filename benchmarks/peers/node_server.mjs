// Node's own http, no framework: one write per event, JSON.stringify, and a set of responses for each chat.
//
//     node node_server.mjs PORT
import { createServer } from "node:http";
import { once } from "node:events";

const KEEPALIVE_MS = 15_000;
const HEAD = { "content-type": "text/event-stream", "cache-control": "no-cache" };
const viewers = new Map();

setInterval(() => {
  for (const chat of viewers.values()) for (const response of chat) response.write(": ping\n\n");
}, KEEPALIVE_MS);

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

function dueText(number, dueMs) {
  return `drop ${String(number).padStart(7, "0")} @${Math.round(dueMs * 1000)}000 `;
}

async function answer(body, response) {
  const { id: chat, messages } = JSON.parse(body);
  const [name, count, rate] = messages.at(-1).parts[0].text.split(" ");
  const began = performance.timeOrigin + performance.now();
  response.writeHead(200, HEAD);
  response.flushHeaders();
  for (let number = 0; number < Number(count); number++) {
    let delta = `${number} `;
    if (name === "/pace") {
      const due = began + (number * 1000) / Number(rate);
      const early = due - performance.timeOrigin - performance.now();
      if (early > 0) await sleep(Math.ceil(early));
      delta = dueText(number, due);
    }
    const frame = `data: ${JSON.stringify({ type: "text-delta", id: "text-1", delta })}\n\n`;
    for (const viewer of viewers.get(chat) ?? []) viewer.write(frame);
    if (!response.write(frame)) await Promise.race([once(response, "drain"), once(response, "close")]);
    if (response.destroyed) return;
  }
  response.end("data: [DONE]\n\n");
}

function watch(chat, response) {
  if (!viewers.has(chat)) viewers.set(chat, new Set());
  viewers.get(chat).add(response);
  response.on("close", () => {
    viewers.get(chat)?.delete(response);
    if (!viewers.get(chat)?.size) viewers.delete(chat);
  });
  response.writeHead(200, HEAD);
  response.write(":ok\n\n");
}

const server = createServer((request, response) => {
  const [, , , chat, what] = request.url.split("?")[0].split("/");
  if (request.method === "GET" && what === "watch") return watch(chat, response);
  if (request.method !== "POST" || chat) return response.writeHead(404).end();
  let body = "";
  request.setEncoding("utf8");
  request.on("data", (piece) => (body += piece));
  request.on("end", () => answer(body, response));
});
server.requestTimeout = 0;
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
process.on("SIGTERM", () => process.exit(0));
