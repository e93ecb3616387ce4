// A Node script that talks to penstock with the npm package `ai`: send, lose the connection, come back, stop.
//
//     cd examples
//     npm install --no-save ai@7
//     penstock serve 01_smallest:answer
//     node 11_client.mjs http://127.0.0.1:8000/api/chat      (on another terminal)
//
// It prints an answer that survives its connection, and one that is stopped. In a page `useChat` does all of this.

import { DefaultChatTransport, readUIMessageStream } from "ai";

const api = process.argv[2] ?? "http://127.0.0.1:8000/api/chat";
const transport = new DefaultChatTransport({ api });
const textOf = (message) => message.parts.filter((part) => part.type === "text").map((part) => part.text).join("");

const ask = (text) => ({ id: crypto.randomUUID(), role: "user", parts: [{ type: "text", text }] });

// Asks, and returns the stream of the answer's chunks.
function send(chatId, text, abortSignal) {
  return transport.sendMessages({ chatId, messages: [ask(text)], trigger: "submit-message", messageId: undefined, abortSignal });
}

// Reads a stream to its end, or until `enough` says so of the message so far, and returns the message.
async function read(stream, enough = () => false) {
  let last;
  // A stream that breaks, or says `error`, throws here: what came is not the answer.
  for await (const message of readUIMessageStream({ stream, terminateOnError: true })) {
    last = message;
    if (enough(message)) break;
  }
  return last;
}

// 1. Send, and lose the connection after a few words. The turn goes on: a closed connection is not a stop.
const lost = new AbortController();
const chatId = `chat-${crypto.randomUUID()}`;
const part = await read(await send(chatId, "one two three four five six seven eight", lost.signal), (message) => textOf(message).split(" ").length > 4);
lost.abort();
console.log("lost:", textOf(part));

// 2. Come back: the whole message from its start, then what is still being written. null: there is nothing to come back to.
const stream = await transport.reconnectToStream({ chatId });
const whole = stream === null ? part : await read(stream);
console.log("whole:", textOf(whole), whole.id === part.id ? "(the same message)" : "(another message)");

// 3. Stop. The protocol has no word for it, so it is a request of its own; the stream ends by itself.
const other = `chat-${crypto.randomUUID()}`;
const words = Array.from({ length: 100 }, (_, number) => number).join(" ");
let stopping;
const stopped = await read(await send(other, words), (message) => {
  if (textOf(message).length > 20) stopping ??= fetch(`${api}/${other}/stop`, { method: "POST" });
  return false;
});
const response = await stopping;
if (!response.ok) throw new Error(await response.text());
console.log((await response.json()).state, "after", textOf(stopped).length, "characters");
