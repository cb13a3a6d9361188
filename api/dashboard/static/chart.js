// The history of a volume: its size and used bytes, drawn by uPlot and described in a sentence for screen readers too.

import { HEADERS } from "./headers.js";
import { sizeText } from "./sizes.js";
import { exactText } from "./times.js";

const HEIGHT = 220;
const MINUTE = 60_000;
const DAY_SECONDS = 86_400;
// The axis of sizes has ticks at multiples of powers of two, which are round in GiB.
const POWERS = Array.from({ length: 60 }, (_, power) => 2 ** power);
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const hour = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const darkness = window.matchMedia("(prefers-color-scheme: dark)");

let chart = null;
let samples = null;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function optionsFor(width) {
  const grid = { stroke: colour("--line"), width: 1 };
  const axis = { stroke: colour("--soft"), grid, ticks: grid, font: "12px system-ui, sans-serif" };
  const stepped = uPlot.paths.stepped({ align: 1 });
  const line = (label, name, fill) => ({
    label,
    stroke: colour(name),
    fill: fill ? `color-mix(in srgb, ${colour(name)} 15%, transparent)` : undefined,
    width: 2,
    paths: stepped,
    points: { show: false },
    value: (_, bytes) => (bytes === null ? "–" : sizeText(bytes)),
  });
  return {
    width,
    height: HEIGHT,
    cursor: { drag: { x: false, y: false } },
    scales: { y: { range: (_, __, highest) => [0, highest * 1.1] } },
    axes: [
      {
        ...axis,
        values: (_, ticks, __, ___, step) =>
          ticks.map((at) => (step < DAY_SECONDS ? hour : day).format(new Date(at * 1000))),
      },
      { ...axis, size: 72, incrs: POWERS, values: (_, ticks) => ticks.map(sizeText) },
    ],
    series: [
      { label: "Time", value: (_, at) => (at === null ? "–" : exactText(new Date(at * 1000))) },
      line("Size", "--accent", false),
      line("Used", "--good", true),
    ],
  };
}

function sentence() {
  const [first, last] = [samples[0], samples.at(-1)];
  const used = last.used === null ? "" : `, of which ${sizeText(last.used)} are used`;
  if (samples.length === 1) {
    return `It has ${sizeText(last.size)}${used}. Nothing has been recorded before.`;
  }
  return `From ${sizeText(first.size)} on ${exactText(new Date(first.at))} to ${sizeText(last.size)} now${used}.`;
}

function draw(element) {
  const canvas = element.querySelector("[data-canvas]");
  chart?.destroy();
  chart = null;
  if (samples === null || samples.length < 2) {
    return;
  }
  const data = [
    samples.map((one) => new Date(one.at).getTime() / 1000),
    samples.map((one) => one.size),
    samples.map((one) => one.used),
  ];
  chart = new uPlot(optionsFor(canvas.clientWidth), data, canvas);
}

async function load(element) {
  const response = await fetch(element.dataset.chart, { headers: HEADERS });
  if (!response.ok) {
    return; // keep the chart; the page shows that the server is away
  }
  samples = (await response.json()).samples;
  element.querySelector("[data-sentence]").textContent = sentence();
  draw(element);
}

export function startChart() {
  const element = document.querySelector("[data-chart]");
  if (element === null) {
    return;
  }
  const reload = () => load(element).catch(() => {}); // the next minute tries again
  reload();
  setInterval(reload, MINUTE);
  document.addEventListener("cistern:changed", reload);
  darkness.addEventListener("change", () => draw(element));
  new ResizeObserver(() => chart?.setSize({ width: element.querySelector("[data-canvas]").clientWidth, height: HEIGHT }))
    .observe(element);
}
