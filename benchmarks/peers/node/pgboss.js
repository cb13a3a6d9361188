// pg-boss: jobs in PostgreSQL, fetched in batches, woken by LISTEN and NOTIFY.

import { PgBoss } from "pg-boss";

import { CONNECTIONS, DATABASE_URL, doWork, openPool, SET, wallClockNs } from "./work.js";

const PAGE = 500;
const QUEUE = "update";

async function start() {
  const boss = new PgBoss({ connectionString: DATABASE_URL, max: CONNECTIONS, useListenNotify: true });
  boss.on("error", console.error);
  await boss.start();
  return boss;
}

async function connect() {
  const boss = await start();
  await boss.createQueue(QUEUE, { notify: true });
  return {
    enqueue: (row) => boss.send(QUEUE, { row }),
    close: () => boss.stop(),
    async enqueueMany(rows) {
      await boss.deleteAllJobs(QUEUE);
      for (let first = 0; first < rows.length; first += PAGE) {
        await boss.insert(QUEUE, rows.slice(first, first + PAGE).map((row) => ({ data: { row } })));
      }
    },
  };
}

// Update the rows of a batch, each committed at once, and report a result for each job.
function separately(pool, jobs) {
  const update = async ({ id, data }) => {
    await doWork(pool, data.row);
    return { id, status: "completed" };
  };
  return Promise.all(jobs.map(update));
}

// Update the rows of a batch in the transaction that completes its jobs.
async function together(_, jobs, transaction) {
  for (const { data } of jobs) {
    await transaction.executeSql(SET, [wallClockNs(), data.row]);
  }
}

function peer({ name, settings, handler, options, ...fields }) {
  const atOnce = `${options.localConcurrency} batches of ${options.batchSize} at once`;
  return {
    name: `pg-boss (${name})`,
    settings: `${atOnce}, ${settings}, ${CONNECTIONS} connections, LISTEN/NOTIFY`,
    connect,
    async work() {
      const pool = openPool();
      const boss = await start();
      const fast = { burstWhenBatchFull: true, pollingIntervalSeconds: 0.5 };
      await boss.work(QUEUE, { ...fast, ...options }, (jobs, transaction) => handler(pool, jobs, transaction));
    },
    ...fields,
  };
}

const KEEPS =
  "Jobs are rows, which are inserted in the caller's transaction on request and kept for a week. Those of a dead " +
  "worker are retried when they expire, after 15 minutes, or when a heartbeat is missing, if one is configured";

export const PEERS = [
  peer({
    name: "results per job",
    settings: "each job with a result of its own",
    options: { localConcurrency: 2, batchSize: 500, perJobResults: true },
    handler: separately,
    keeps: `${KEEPS}.`,
    loses: "No committed job; but there is no fence: a job that expires while it runs may run twice.",
    expected_rate: 3000,
  }),
  peer({
    name: "transactional",
    settings: "the updates of a batch in one transaction with the completion of its jobs, not committed one by one",
    options: { localConcurrency: 4, batchSize: 500, transactional: true },
    handler: together,
    keeps: `${KEEPS}. Changes in the same database commit with the jobs, exactly once; one failure undoes the batch.`,
    loses: "No committed job; but there is no fence for storage outside the database.",
    expected_rate: 4000,
  }),
];
