// Drives the playground as a person would, in a real Chromium, and prints what the person sees as one JSON line.
// usage: node page.mjs URL CHROMIUM
import { launch } from "./chromium.mjs";

const [url, executablePath] = process.argv.slice(2);
const browser = await launch(executablePath);
try {
  const page = await browser.newPage({ viewport: { width: 1200, height: 760 } });
  page.setDefaultTimeout(15_000);
  const problems = [];
  page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
  page.on("pageerror", (error) => problems.push(String(error)));
  await page.goto(url);

  const answers = [];
  const status = page.locator("#status");
  const ask = async (text, how) => {
    await how();
    const answer = page.locator(".message.assistant").nth(answers.length);
    await answer.waitFor();
    await page.waitForFunction(() => document.getElementById("status").dataset.state !== "streaming");
    answers.push({ text, answer: await answer.locator(".body").innerText(), status: await status.innerText() });
  };
  const type = (text) => ask(text, async () => { await page.fill("#text", text); await page.keyboard.press("Enter"); });
  const press = (text) => ask(text, () => page.getByRole("button", { name: text, exact: true }).click());

  await type("Hello, my name is Ada.");
  await type("<img src=x onerror=alert(1)>");
  for (const command of ["/reason", "/tool", "/steps", "/sources", "/file", "/data", "/error"]) await press(command);
  const events = await page.locator("#events div").allInnerTexts();
  console.log(JSON.stringify({ answers, events, problems }));
} finally {
  await browser.close();
}
