// Opens a report from its file, as from a mail, and prints what a reader would see and what the page asked for.
// usage: node report.mjs FILE-URL CHROMIUM
import { launch } from "./chromium.mjs";

const [url, executablePath] = process.argv.slice(2);
const browser = await launch(executablePath);
try {
  const problems = [];
  const requests = [];
  const views = {};
  for (const colorScheme of ["light", "dark"]) {
    for (const width of [1200, 390]) {
      const page = await browser.newPage({ viewport: { width, height: 800 }, colorScheme });
      page.setDefaultTimeout(15_000);
      page.on("console", (message) => problems.push(message.text()));
      page.on("pageerror", (error) => problems.push(String(error)));
      page.on("request", (request) => requests.push(request.url()));
      await page.goto(url);
      views[`${colorScheme} ${width}`] = await page.evaluate(() => {
        const shown = [...document.querySelectorAll("svg")].filter((plot) => plot.getBoundingClientRect().height > 0);
        return {
          plots: shown.map((plot) => plot.querySelector("title").textContent),
          lines: shown.map((plot) => plot.querySelectorAll(".line, rect.f0").length),
          color: getComputedStyle(shown[0].querySelector(".line")).stroke,
          ground: getComputedStyle(document.body).backgroundColor,
          overflow: document.documentElement.scrollWidth - innerWidth,
        };
      });
      await page.close();
    }
  }
  console.log(JSON.stringify({ problems, requests, views }));
} finally {
  await browser.close();
}
