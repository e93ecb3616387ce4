// Two people on the page of example 10, while whoever runs this restarts the server between two lines on stdin.
// usage: node eventsource.mjs URL CHROMIUM
import { once } from "node:events";
import { launch } from "../browser/chromium.mjs";

const [url, executablePath] = process.argv.slice(2);
const browser = await launch(executablePath);
try {
  const problems = [];
  const open = async () => {
    const page = await (await browser.newContext()).newPage();
    page.setDefaultTimeout(15_000);
    page.on("pageerror", (error) => problems.push(String(error)));
    await page.goto(url);
    await page.waitForFunction(() => document.querySelector("#status").textContent === "watching");
    return page;
  };
  const shown = (page) => page.locator("#chat p").allTextContents();
  const say = async (page, text) => {
    await page.fill("input", text);
    await page.click("text=Send");
  };
  const answered = async (as) => {
    while ((await (await fetch(`${url}/api/chat/watched`)).json()).turn.state !== as) await new Promise((go) => setTimeout(go, 50));
  };
  const sees = (page, text) => page.waitForFunction((text) => [...document.querySelectorAll("#chat p")].at(-1)?.textContent.trim() === text, text);
  const [ada, bob] = [await open(), await open()];

  await say(ada, "one <b>two</b>");
  await sees(bob, "You said: one <b>two</b>");
  const first = await shown(bob);
  await answered("finished");

  // Somebody comes in the middle of an answer, and stops it.
  await say(ada, Array.from({ length: 60 }, () => "drop").join(" "));
  await bob.waitForFunction(() => document.querySelectorAll("#chat p").length === 4 && [...document.querySelectorAll("#chat p")].at(-1).textContent.includes("drop drop"));
  const late = await open();
  await late.waitForFunction(() => [...document.querySelectorAll("#chat p")].at(-1)?.textContent.includes("drop drop drop"));
  await late.click("text=Stop");
  await answered("stopped");
  const whole = (await (await fetch(`${url}/api/chat/watched`)).json()).messages.at(-1).parts.map((part) => part.text ?? "").join("");
  for (const page of [ada, bob, late]) await sees(page, whole.trim());

  // The server goes and comes back.
  console.log("restart");
  await once(process.stdin, "data");
  await say(ada, "again");
  for (const page of [ada, bob, late]) await sees(page, "You said: again");
  console.log(JSON.stringify({ problems, first, whole, last: await Promise.all([ada, bob, late].map(shown)) }));
} finally {
  await browser.close();
  process.stdin.destroy();
}
