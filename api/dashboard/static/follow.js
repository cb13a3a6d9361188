// The page of a job follows it by its events until it has ended. Each event moves the bar at once; the rest of the page
// is brought up to date at most once a second.

import { refresh } from "./live.js";

const PAUSE = 1000;
const RETRY = 3000;

let planned = null;

function planRefresh() {
  planned ??= setTimeout(() => {
    planned = null;
    refresh();
  }, PAUSE);
}

function showProgress(progress) {
  const bar = document.querySelector("#job-state progress");
  if (progress === null || bar === null || progress.total === 0) {
    return;
  }
  const percent = (100 * (progress.succeeded + progress.failed + progress.skipped)) / progress.total;
  bar.value = percent;
  const text = document.querySelector("#job-state [data-percent]");
  if (text !== null) {
    text.textContent = `${Math.round(percent)} %`;
  }
}

function follow(id) {
  const source = new EventSource(`/api/v1/jobs/${id}/events`);
  source.addEventListener("open", () => planRefresh());
  source.addEventListener("progress", (event) => {
    showProgress(JSON.parse(event.data).progress);
    planRefresh();
  });
  source.addEventListener("ended", (event) => {
    source.close();
    showProgress(JSON.parse(event.data).progress);
    refresh();
  });
  source.addEventListener("error", () => {
    // The browser reconnects by itself after a lost connection, but not after an error of the server.
    refresh();
    if (source.readyState === EventSource.CLOSED) {
      setTimeout(() => startFollowing(), RETRY);
    }
  });
}

export function startFollowing() {
  const id = document.querySelector("[data-follow]")?.dataset.follow;
  if (id) {
    follow(id);
  }
}
