// Watches a chat with the browser's own EventSource while whoever runs this cuts its connection.
// usage: node watch.mjs URL CHROMIUM
import { launch } from "./chromium.mjs";

const [url, executablePath] = process.argv.slice(2);
const browser = await launch(executablePath);
try {
  const context = await browser.newContext();
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  await page.goto(url);
  await page.evaluate(async () => {
    window.seen = { opened: 0, names: [], ids: [], text: "", message: null };
    const source = new EventSource("/api/chat/watched/watch");
    source.onopen = () => window.seen.opened++;
    for (const name of ["snapshot", "chunk", "message", "gap", "closing"]) {
      source.addEventListener(name, (event) => {
        window.seen.names.push(name);
        const data = JSON.parse(event.data);
        if (name === "chunk") {
          window.seen.ids.push(event.lastEventId);
          if (data.type === "text-delta") window.seen.text += data.delta;
        }
        if (name === "message" && data.role === "assistant") window.seen.message = data.parts.filter((part) => part.type === "text").map((part) => part.text).join("");
      });
    }
    await new Promise((go) => source.addEventListener("snapshot", go, { once: true }));
    const body = { id: "watched", messages: [{ id: "u", role: "user", parts: [{ type: "text", text: "/slow" }] }] };
    fetch("/api/chat", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) }).then((response) => response.text()).catch(() => {});
  });
  await page.waitForFunction(() => window.seen.message !== null);
  console.log(JSON.stringify(await page.evaluate(() => window.seen)));
} finally {
  await browser.close();
}
