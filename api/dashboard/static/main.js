// What every page does: times in the viewer's words and zone, live parts, and actions. Each module looks for its own
// elements, so a page has only to mark them.

import { startActions } from "./actions.js";
import { startChart } from "./chart.js";
import { startFollowing } from "./follow.js";
import { startForms } from "./forms.js";
import { startLive } from "./live.js";
import { startTimes } from "./times.js";

startTimes();
startLive();
startFollowing();
startActions();
startForms();
startChart();

const insecure = document.getElementById("insecure");
if (insecure !== null) {
  insecure.hidden = window.isSecureContext;
}
