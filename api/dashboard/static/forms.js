// Forms in dialogs: their fields become the JSON of a request.

import { done, send } from "./actions.js";
import { HEADERS } from "./headers.js";
import { sizeText } from "./sizes.js";
import { showTimes } from "./times.js";

// How a field is read, by its data-as: (text, name, field) => value. A field whose value is undefined is left out.
const READERS = {
  text: (text) => text,
  number: Number,
  limit: (text) => (text === "" ? null : READERS.size(text)),
  flag: (_, __, field) => field.checked || undefined,
  checked: (_, __, field) => (field.checked ? field.value : undefined),
  json: JSON.parse,
  amount: (text, name) => (name.endsWith("percent") ? Number(text) : text),
  lines: (text) => text.split("\n").map((line) => line.trim()).filter((line) => line !== ""),
  size: (text) => (/^\d+$/.test(text) ? Number(text) : text),
  labels: (text) => Object.fromEntries(
    text.split("\n").filter((line) => line.trim() !== "").map((line) => {
      const at = line.indexOf(":");
      return at < 0 ? [line.trim(), ""] : [line.slice(0, at).trim(), line.slice(at + 1).trim()];
    }),
  ),
};

function nameOf(field) {
  if (field.dataset.chosen === undefined) {
    return field.name;
  }
  return field.form.querySelector(`[data-chooses="${field.dataset.chosen}"]`).value;
}

// Read a form as the body of a request. An empty field is left out, unless it is marked with data-always. A dot in a
// name makes an object, which is null if all of its fields are empty. Checkboxes of the same name make an array.
export function bodyOf(form) {
  const body = {};
  for (const field of form.querySelectorAll("[data-as]:enabled")) {
    const name = nameOf(field);
    const [outer, inner] = name.split(".");
    const text = field.value.trim();
    if (inner !== undefined) {
      body[outer] ??= null;
    }
    if (text === "" && field.dataset.always === undefined) {
      continue;
    }
    let value;
    try {
      value = READERS[field.dataset.as](text, name, field);
    } catch (error) {
      throw new Error(`${field.labels[0].textContent}: ${error.message}`);
    }
    if (field.dataset.as === "checked") {
      body[name] = [...(body[name] ?? []), ...(value === undefined ? [] : [value])];
    } else if (value === undefined) {
      continue;
    } else if (inner === undefined) {
      body[name] = value;
    } else {
      body[outer] = { ...body[outer], [inner]: value };
    }
  }
  return body;
}

function showProblem(form, text) {
  form.querySelector("[data-problem]").textContent = text;
}

async function submit(form) {
  const [method, path] = form.dataset.api.split(" ");
  const button = form.querySelector("[type=submit]");
  // The Idempotency-Key stays the same until a field is changed, so that a form that is sent twice counts once.
  form.dataset.key ??= crypto.randomUUID();
  showProblem(form, "");
  button.disabled = true;
  try {
    const answer = await send(method, path, bodyOf(form), form.dataset.key);
    form.closest("dialog").close();
    form.reset();
    delete form.dataset.key;
    await done(form.dataset.then, answer);
  } catch (error) {
    showProblem(form, error.message);
  } finally {
    button.disabled = false;
  }
}

// Show what a bulk request, or the request of a schedule, would do now.
async function plan(form) {
  const element = form.querySelector("[data-plan]");
  showProblem(form, "");
  try {
    let body = bodyOf(form);
    if (form.dataset.schedule !== undefined) {
      if ("name" in body.params) { // of the snapshots: a bulk snapshot has no dry run
        element.textContent = "It would take a snapshot of every volume that matches.";
        return;
      }
      body = body.params;
    }
    const answer = await send("POST", "/api/v1/volumes/expand", { ...body, dry_run: true });
    const unknown = answer.unmeasured ? `; of ${answer.unmeasured} it is not known yet what is used` : "";
    element.textContent = `Of ${answer.total} volumes ${answer.grows} would grow, by ${sizeText(answer.bytes)} in all${unknown}.`;
  } catch (error) {
    showProblem(form, error.message);
  }
}

// Show the next times of a schedule.
async function preview(form) {
  const query = new URLSearchParams({ cron: form.elements.cron.value, time_zone: form.elements.time_zone.value });
  const response = await fetch(`/schedules/preview?${query}`, { headers: HEADERS });
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const element = document.getElementById("schedule-preview");
  element.replaceChildren(...(page.querySelector("main .card p, body > p") ?? page.body).childNodes);
  showTimes(element);
}

// Hide the fields that belong to another choice: a disabled field is left out of the request.
function showChosen(select) {
  if (select.matches("[data-shows]")) {
    for (const part of select.form.querySelectorAll("[data-shown-for]")) {
      part.hidden = part.disabled = part.dataset.shownFor !== select.value;
    }
  } else if (select.matches("[data-chooses]")) {
    const amount = select.form.querySelector(`[data-chosen="${select.dataset.chooses}"]`);
    const isPolicy = select.value.endsWith("policy");
    amount.closest(".field").hidden = isPolicy;
    amount.value = isPolicy ? "autogrow" : amount.value === "autogrow" ? "" : amount.value;
  }
}

export function startForms() {
  for (const form of document.querySelectorAll("form[data-api]")) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      submit(form);
    });
    form.addEventListener("input", () => { delete form.dataset.key; });
    form.querySelector("[data-plans]")?.addEventListener("click", () => plan(form));
  }
  for (const form of document.querySelectorAll("form[data-schedule]")) {
    let timer;
    form.addEventListener("input", (event) => {
      if (event.target.matches("[name=cron], [name=time_zone]")) {
        clearTimeout(timer);
        timer = setTimeout(() => preview(form), 300);
      }
    });
    document.querySelector("[data-opens=schedule]")?.addEventListener("click", () => preview(form));
  }
  document.addEventListener("change", (event) => {
    showChosen(event.target);
    const form = event.target.closest("form[data-submits]");
    if (form !== null && event.target.matches("select")) {
      form.requestSubmit();
    }
  });
}
