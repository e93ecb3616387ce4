// What a person sees of the React example, over SSE and over a WebSocket; prints it as one JSON line.
// usage: node react.mjs URL CHROMIUM
import { launch } from "./chromium.mjs";

const [url, executablePath] = process.argv.slice(2);
const browser = await launch(executablePath);

async function see(query) {
  const page = await browser.newPage();
  page.setDefaultTimeout(15_000);
  const seen = { problems: [], sockets: 0 };
  page.on("console", (message) => message.type() === "error" && seen.problems.push(message.text()));
  page.on("pageerror", (error) => seen.problems.push(String(error)));
  page.on("websocket", () => { seen.sockets += 1; });
  await page.goto(url + query);

  const text = async () => (await page.locator(".assistant").last().innerText());
  const longerThan = (count) => page.waitForFunction((least) => [...document.querySelectorAll(".assistant")].at(-1)?.innerText.length > least, count);
  const status = (wanted) => page.waitForFunction((value) => document.querySelector("output").innerText === value, wanted);
  const say = async (words) => { await page.fill("input", words); await page.keyboard.press("Enter"); };

  await say("/slow");
  await longerThan(60);
  const before = await text();
  await page.reload();
  await longerThan(before.length);
  seen.goesOn = (await text()).startsWith(before);
  await page.getByRole("button", { name: "Stop" }).click();
  await status("ready");
  await say("Hello, my name is Ada.");
  await page.waitForFunction(() => document.querySelectorAll(".assistant").length === 2);
  await status("ready");
  seen.answer = await text();
  await page.close();
  return seen;
}

try {
  console.log(JSON.stringify({ sse: await see("/"), socket: await see("/?socket") }));
} finally {
  await browser.close();
}
