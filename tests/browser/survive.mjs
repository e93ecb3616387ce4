// What a person does who doesn't trust the network, in a real Chromium; prints what was seen as one JSON line.
// usage: node survive.mjs URL CHROMIUM
import { launch } from "./chromium.mjs";

const [url, executablePath] = process.argv.slice(2);
const browser = await launch(executablePath);
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(15_000);
  const seen = { problems: [], statuses: [] };
  page.on("console", (message) => message.type() === "error" && seen.problems.push(message.text()));
  page.on("pageerror", (error) => seen.problems.push(String(error)));
  await page.goto(url);

  const status = () => page.locator("#status").innerText();
  const state = (wanted) => page.waitForFunction((value) => document.getElementById("status").dataset.state === value, wanted);
  const last = page.locator(".message.assistant").last();
  const length = async () => (await last.innerText()).length;
  const longerThan = (count) => page.waitForFunction((least) => [...document.querySelectorAll(".message.assistant")].at(-1)?.innerText.length > least, count);
  const say = async (text) => { await page.fill("#text", text); await page.keyboard.press("Enter"); };
  const says = (text) => page.waitForFunction((wanted) => [...document.querySelectorAll(".message.assistant")].at(-1)?.innerText.includes(wanted), text);

  await say("/approve");
  await page.getByRole("button", { name: "Approve", exact: true }).click();
  await says("The gate is open.");
  await state("ready");
  seen.approved = await last.innerText();

  await say("/approve now");
  await page.getByRole("button", { name: "Deny", exact: true }).click();
  await says("The gate stays shut.");
  await state("ready");
  seen.denied = await last.innerText();

  await say("/slow");
  await longerThan(200);
  seen.before = await length();
  await page.locator("#unplug").click();
  seen.unplugged = await status();
  await state("streaming");
  await longerThan(seen.before);
  seen.back = await length();
  await page.reload();
  await state("streaming");
  await longerThan(seen.back);
  seen.reloaded = await length();
  seen.statuses.push(await status());
  await state("ready");
  seen.statuses.push(await status());
  seen.whole = await length();

  await say("/slow");
  await longerThan(50);
  await page.locator("#stop").click();
  await state("ready");
  seen.stopped = await length();
  seen.afterStop = await status();
  console.log(JSON.stringify(seen));
} finally {
  await browser.close();
}
