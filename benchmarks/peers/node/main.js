// Entry point of `node main.js MODULE COMMAND...`: the commands of ../peer.py, for the peers on Node.js.

import { setTimeout as pause } from "node:timers/promises";

import { wallClockNs } from "./work.js";

// As PAUSES in ../peer.py, in milliseconds.
const PAUSES = [20, 120];

const [script, module, command, name, count] = process.argv.slice(1);
const { PEERS } = await import(`./${module}.js`);

function described(peer) {
  const { name, settings, keeps, loses, expected_rate, has_queue = true } = peer;
  return { name, worker: [script, module, "work", name], settings, keeps, loses, expected_rate, has_queue };
}

function rows() {
  return Array.from({ length: Number(count) }, (_, index) => index + 1);
}

// Enqueue jobs one by one; return when each was sent and when that returned, in wall-clock ns.
async function trickle(queue) {
  const times = [];
  for (const row of rows()) {
    await pause(PAUSES[0] + Math.random() * (PAUSES[1] - PAUSES[0]));
    const sent = wallClockNs();
    await queue.enqueue(row);
    times.push([sent, wallClockNs()]);
  }
  return times;
}

async function run(peer) {
  if (command === "work") {
    await peer.work();
    return;
  }
  const queue = await peer.connect();
  if (command === "enqueue") {
    await queue.enqueueMany(rows());
  } else if (command === "trickle") {
    console.log(JSON.stringify(await trickle(queue)));
  } else {
    throw new Error(`unknown command: ${command}`);
  }
  await queue.close();
}

if (command === "about") {
  console.log(JSON.stringify(PEERS.map(described)));
} else {
  await run(PEERS.find((peer) => peer.name === name));
}
