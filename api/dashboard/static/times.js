// Times: how long ago, kept up to date; the exact one, in the viewer's zone, as the title.

const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });

function words(moment) {
  const seconds = (moment.getTime() - Date.now()) / 1000;
  for (const [unit, length] of UNITS) {
    if (Math.abs(seconds) >= length) {
      return relative.format(unit === "day" ? Math.round(seconds / length) : Math.trunc(seconds / length), unit);
    }
  }
  return "now";
}

export function exactText(moment) {
  return exact.format(moment);
}

export function showTimes(root = document) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(element.dateTime);
    const text = words(moment);
    if (element.textContent !== text) {
      element.textContent = text;
    }
    element.title = exact.format(moment);
  }
  for (const element of root.querySelectorAll("[data-exact]")) {
    element.textContent = exact.format(new Date(element.dataset.exact));
  }
}

export function startTimes() {
  showTimes();
  setInterval(showTimes, 5000);
}
