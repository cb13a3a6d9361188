// Live parts: the page is asked for again every few seconds, and the elements marked with data-live are replaced.
// While the server is away the page says so, and goes on when it is back.

import { HEADERS } from "./headers.js";
import { showTimes } from "./times.js";

const SECONDS = 3;
// A request that is not answered within this many milliseconds is given up: it must not end the updates.
const WAIT = 10000;

let paused = false;
let running = null;
let next = null;

function away(text) {
  const element = document.getElementById("away");
  if (element.textContent !== text) {
    element.textContent = text;
    element.hidden = text === "";
  }
}

function replace(fresh) {
  let changed = false;
  for (const element of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(element.id);
    if (other === null) {
      element.replaceChildren();
      continue;
    }
    showTimes(other);
    if (element.isEqualNode(other)) {
      continue;
    }
    if (element.contains(document.activeElement) && document.activeElement.matches("input, select, textarea")) {
      continue; // somebody is typing
    }
    changed = true;
    const focused = element.contains(document.activeElement) ? document.activeElement.outerHTML : null;
    const open = [...element.querySelectorAll("details")].map((one) => one.open);
    const scrolled = [...element.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    element.toggleAttribute("hidden", other.hasAttribute("hidden"));
    for (const { name, value } of other.attributes) {
      element.setAttribute(name, value);
    }
    element.replaceChildren(...other.childNodes);
    element.querySelectorAll("details").forEach((one, index) => { one.open = open[index] ?? false; });
    element.querySelectorAll(".scroll").forEach((one, index) => { one.scrollLeft = scrolled[index] ?? 0; });
    if (focused !== null) {
      [...element.querySelectorAll("a, button, summary, [tabindex]")].find((one) => one.outerHTML === focused)?.focus();
    }
  }
  if (changed) {
    document.dispatchEvent(new Event("cistern:changed"));
  }
}

async function load() {
  const response = await fetch(window.location.pathname + window.location.search, {
    headers: HEADERS,
    cache: "no-store",
    signal: AbortSignal.timeout(WAIT),
  });
  if (response.status === 401) {
    window.location.reload(); // to the page that asks for a key
    return;
  }
  if (response.status === 429 || response.status >= 500) {
    away(response.status === 429 ? "Too many requests: waiting." : "Cistern cannot read its database now. Trying again.");
    return;
  }
  const { project } = document.body.dataset;
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  if (response.status === 404 && fresh.body.textContent.includes("/problems/project-not-found")) {
    away(`You have signed in with a key that does not see the project ${project}. Load this page again.`);
    return;
  }
  replace(fresh);
  away("");
}

// Bring the page up to date, by a request that begins now or later: one under way may be answered with what was before.
// Of calls during a request all wait for the same next one.
export function refresh() {
  if (running === null) {
    running = load()
      .catch(() => away("Cistern does not answer. This page goes on when it is back."))
      .finally(() => { running = null; });
    return running;
  }
  next ??= running.then(() => {
    next = null;
    return refresh();
  });
  return next;
}

export function startLive() {
  if (document.querySelector("[data-pause]") === null) {
    return;
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-pause]");
    if (button !== null) {
      paused = !paused;
      button.setAttribute("aria-pressed", String(paused));
      button.textContent = paused ? "Resume updates" : "Pause updates";
      if (!paused) {
        refresh();
      }
    }
  });
  setInterval(() => {
    const isWanted = !paused && document.visibilityState === "visible" && document.querySelector("dialog[open]") === null;
    if (isWanted && running === null) {
      refresh();
    }
  }, SECONDS * 1000);
  document.addEventListener("visibilitychange", () => {
    if (!paused && document.visibilityState === "visible") {
      refresh();
    }
  });
}
