// Actions: buttons and forms that send a request to the API, after a question where something would be lost.

import { HEADERS } from "./headers.js";
import { refresh } from "./live.js";

export function notify(text) {
  const paragraph = document.createElement("p");
  paragraph.textContent = text;
  document.getElementById("notice").replaceChildren(paragraph);
  setTimeout(() => paragraph.remove(), 8000);
}

// Send a request. Returns the JSON of the response; throws an error with a message for the viewer.
export async function send(method, path, body, key = crypto.randomUUID()) {
  const headers = { ...HEADERS, Accept: "application/json" };
  if (method === "POST") {
    headers["Idempotency-Key"] = key;
  }
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Error("Cistern does not answer. Nothing may have been changed: look before you try again.");
  }
  if (response.status === 401) {
    window.location.reload();
  }
  const answer = response.status === 204 ? {} : await response.json();
  if (!response.ok) {
    throw new Error(answer.detail ?? answer.title ?? `The answer was ${response.status}.`);
  }
  return answer;
}

async function isConfirmed(button) {
  return button.dataset.confirm === undefined || ask(button.dataset, button.classList.contains("danger"));
}

// Ask in a dialog. Returns whether the viewer agrees.
async function ask({ confirm, confirmTitle, confirmOk, confirmKeep }, isDangerous) {
  const dialog = document.getElementById("confirm");
  const ok = document.getElementById("confirm-ok");
  document.getElementById("confirm-title").textContent = confirmTitle ?? "Are you sure?";
  document.getElementById("confirm-text").textContent = confirm;
  ok.textContent = confirmOk ?? "Do it";
  ok.classList.toggle("danger", isDangerous);
  dialog.querySelector("[value=cancel]").textContent = confirmKeep ?? "Keep it";
  dialog.returnValue = "cancel";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  return dialog.returnValue === "ok";
}

function showSecret(what, text) {
  document.getElementById(`new-${what}-text`).textContent = text;
  document.getElementById(`new-${what}`).showModal();
}

// What follows a request that was accepted.
export async function done(then, answer) {
  if (then === "job") {
    window.location.assign(`/jobs/${answer.id}`);
  } else if (then === "schedule") {
    window.location.assign(`/schedules/${answer.id}`);
  } else if (then === "key") {
    showSecret("key", answer.key);
  } else if (then === "webhook") {
    showSecret("webhook", answer.secret);
  } else if (then?.startsWith("/")) {
    window.location.assign(then);
  } else if (then === "load") {
    window.location.reload();
  } else {
    await refresh();
  }
}

async function press(button) {
  const { post, patch, remove, body, then } = button.dataset;
  const [method, path] = post ? ["POST", post] : patch ? ["PATCH", patch] : ["DELETE", remove];
  if (!(await isConfirmed(button))) {
    return;
  }
  button.disabled = true;
  try {
    await done(then, await send(method, path, body === undefined ? undefined : JSON.parse(body)));
  } catch (error) {
    notify(error.message);
  } finally {
    button.disabled = false;
  }
}

const MANY = {
  cancel: { verb: "Cancel", done: "cancelled", keep: "Let them run", text: "Those that are running may still succeed." },
  retry: { verb: "Retry", done: "retried", keep: "Leave them", text: "Each becomes a new job." },
};

// Change all jobs that match, page by page, after their number was shown and confirmed. Shows how many were refused.
async function changeMany(button) {
  const { verb, done: past, keep, text } = MANY[button.dataset.many];
  const path = `/api/v1/jobs/${button.dataset.many}`;
  const selectors = JSON.parse(button.dataset.selectors);
  button.disabled = true;
  try {
    const { matched, more } = await send("POST", path, { ...selectors, dry_run: true });
    if (matched === 0) {
      notify(`No job that matches can be ${past}.`);
      return;
    }
    const number = `${matched.toLocaleString("en")}${more ? "+" : ""} ${matched === 1 ? "job" : "jobs"}`;
    const question = { confirm: text, confirmTitle: `${verb} ${number}?`, confirmOk: `${verb} them`, confirmKeep: keep };
    if (!(await ask(question, false))) {
      return;
    }
    let [accepted, refused, before] = [0, 0, undefined];
    do {
      const page = await send("POST", path, before === undefined ? selectors : { ...selectors, before });
      accepted += page.accepted;
      refused += Object.values(page.refused).reduce((sum, count) => sum + count, 0);
      before = page.next_before ?? undefined;
      notify(`${accepted.toLocaleString("en")} jobs were ${past}${refused ? `, ${refused.toLocaleString("en")} could not be` : ""}.`);
    } while (before !== undefined);
    await refresh();
  } catch (error) {
    notify(error.message);
  } finally {
    button.disabled = false;
  }
}

export function startActions() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button === null) {
      return;
    }
    if (button.matches("[data-post], [data-patch], [data-remove]")) {
      press(button);
    } else if (button.dataset.many !== undefined) {
      changeMany(button);
    } else if (button.dataset.opens !== undefined) {
      document.getElementById(button.dataset.opens).showModal();
    } else if (button.matches("[data-close]")) {
      button.closest("dialog").close();
      if (button.dataset.refreshes !== undefined) {
        document.getElementById(button.dataset.refreshes).textContent = "";
        refresh();
      }
    } else if (button.dataset.copies !== undefined) {
      navigator.clipboard.writeText(document.getElementById(button.dataset.copies).textContent).then(
        () => notify("Copied."),
        () => notify("The browser did not allow it: select the text instead."),
      );
    }
  });
}
