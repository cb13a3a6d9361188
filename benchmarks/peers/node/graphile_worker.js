// graphile-worker: jobs in PostgreSQL, woken by LISTEN and NOTIFY.

import { Logger, makeWorkerUtils, run } from "graphile-worker";

import { CONNECTIONS, DATABASE_URL, doWork, execute, openPool } from "./work.js";

const PAGE = 500;
const AT_ONCE = 100;
// Its documentation: "a reasonable default"; 0 was slower.
const COMPLETION_MS = 250;
const logger = new Logger(() => (level, message) => level === "error" && console.error(message));
const connection = { connectionString: DATABASE_URL, logger };

async function connect() {
  const utils = await makeWorkerUtils(connection);
  return {
    enqueue: (row) => utils.addJob("update", { row }),
    close: () => utils.release(),
    // Create the tables anew, then enqueue jobs in pages.
    async enqueueMany(rows) {
      await execute("DROP SCHEMA IF EXISTS graphile_worker CASCADE");
      await utils.migrate();
      for (let first = 0; first < rows.length; first += PAGE) {
        await utils.addJobs(rows.slice(first, first + PAGE).map((row) => ({ identifier: "update", payload: { row } })));
      }
    },
  };
}

function peer(size) {
  const written = size.toLocaleString("en");
  return {
    name: `graphile-worker (${written})`,
    settings:
      `${AT_ONCE} jobs at once, local queue of ${written}, completions in batches every ${COMPLETION_MS} ms, ` +
      `${CONNECTIONS} connections for the queue and ${CONNECTIONS} for the work`,
    keeps:
      "Jobs are rows, which SQL can insert in the caller's transaction; failures are retried 25 times. Those that a " +
      "dead worker had fetched run again after four hours.",
    loses: "No committed job; but there is no fence, and no lease that a live worker renews.",
    expected_rate: 4000,
    connect,
    async work() {
      const pool = openPool();
      await run({
        ...connection,
        taskList: { update: ({ row }) => doWork(pool, row) },
        preset: {
          worker: {
            concurrentJobs: AT_ONCE,
            maxPoolSize: CONNECTIONS,
            localQueue: { size, refetchDelay: { durationMs: 10 } },
            completeJobBatchDelay: COMPLETION_MS,
            failJobBatchDelay: COMPLETION_MS,
          },
        },
      });
    },
  };
}

export const PEERS = [peer(500), peer(2000)];
