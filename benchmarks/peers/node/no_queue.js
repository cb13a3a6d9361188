// The lower bound of the cost: the same updates on Node.js, without any queue.

import { CONNECTIONS, doWork, execute, openPool } from "./work.js";

const AT_ONCE = 100;

export const PEERS = [
  {
    name: "no queue (node-postgres)",
    settings: `${AT_ONCE} updates at once, ${CONNECTIONS} connections`,
    keeps: "Nothing: there is no queue, only the updates, each committed.",
    loses: "Every update that a dead process had not committed.",
    expected_rate: 6000,
    has_queue: false,
    // Nothing is enqueued: the worker finds the rows itself.
    connect: async () => ({ enqueueMany() {}, close() {} }),
    async work() {
      const pool = openPool();
      const remaining = (await execute("SELECT id FROM work ORDER BY id")).values();
      await Promise.all(
        Array.from({ length: AT_ONCE }, async () => {
          for (const { id } of remaining) {
            await doWork(pool, id);
          }
        }),
      );
    },
  },
];
