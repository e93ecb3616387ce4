// Chats over a WebSocket from a page in a real Chromium.
// usage: node socket.mjs URL CHROMIUM     says `ready` on stdout, then what the page saw once the server has closed
import { launch } from "./chromium.mjs";

const [url, executablePath] = process.argv.slice(2);
const browser = await launch(executablePath);
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(15_000);
  await page.goto(url);
  await page.evaluate(async () => {
    const socket = new WebSocket(`ws://${location.host}/api/chat/ws`, ["chat", "other"]);
    const seen = { frames: [], pongs: ["there?"] };
    const of = (requestId) => seen.frames.filter((frame) => frame.requestId === requestId);
    const ended = (requestId) => new Promise((resolve) => socket.addEventListener("message", () => of(requestId).some((frame) => frame.type === "end") && resolve()));
    socket.onmessage = (event) => seen.frames.push(JSON.parse(event.data));
    window.over = new Promise((resolve) => (socket.onclose = ({ code, reason, wasClean }) => resolve({ ...seen, code, reason, wasClean, protocol: socket.protocol, extensions: socket.extensions })));
    await new Promise((resolve) => (socket.onopen = resolve));
    const messages = [{ id: "u1", role: "user", parts: [{ type: "text", text: "Hello" }] }];
    socket.send(JSON.stringify({ type: "send", requestId: "1", id: "browser", messages }));
    await ended("1");
    const after = of("1").filter((frame) => frame.type === "chunk")[2].position;
    socket.send(new TextEncoder().encode(JSON.stringify({ type: "resume", requestId: "2", id: "browser", after })));
    await ended("2");
  });
  console.log("ready");
  console.log(JSON.stringify(await page.evaluate(() => window.over)));
} finally {
  await browser.close();
}
