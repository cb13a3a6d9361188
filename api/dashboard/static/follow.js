// The page of a job follows it by its events until it has ended. Each event moves the bar at once; the rest of the page
// is brought up to date at most once a second, and without any event every POLL milliseconds: the connection of the
// events may have been cut without a word.

import { refresh } from "./live.js";

const PAUSE = 1000;
const RETRY = 3000;
const POLL = 10000;

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

// The id of the job as long as the page does not show its end; lanes end a little later than their bulk job.
function followed() {
  return document.querySelector("[data-follow]")?.dataset.follow;
}

// After the last event: bring the page up to date until it shows the end, as the server may be away just then.
async function showEnd() {
  await refresh();
  if (followed()) {
    setTimeout(showEnd, RETRY);
  }
}

function follow(id) {
  const source = new EventSource(`/api/v1/jobs/${id}/events`);
  const timer = setInterval(async () => {
    if (document.visibilityState === "visible") {
      await refresh();
    }
    if (!followed()) {
      stop();
    }
  }, POLL);
  function stop() {
    clearInterval(timer);
    source.close();
  }
  source.addEventListener("open", () => planRefresh());
  source.addEventListener("progress", (event) => {
    showProgress(JSON.parse(event.data).progress);
    planRefresh();
  });
  source.addEventListener("ended", (event) => {
    stop();
    showProgress(JSON.parse(event.data).progress);
    showEnd();
  });
  source.addEventListener("error", () => {
    // The browser reconnects by itself after a lost connection, but not after an error of the server.
    refresh();
    if (source.readyState === EventSource.CLOSED) {
      stop();
      setTimeout(() => startFollowing(), RETRY);
    }
  });
}

export function startFollowing() {
  const id = followed();
  if (id) {
    follow(id);
  }
}
