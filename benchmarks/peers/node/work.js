// The work of the peers on Node.js: the statement of ../work.py, with as many connections.

import pg from "pg";

export const DATABASE_URL = process.env.PEERS_DATABASE_URL;
// As CONNECTIONS in ../work.py.
export const CONNECTIONS = 20;

export const SET = "UPDATE work SET begun_ns = $1, done_at = clock_timestamp() WHERE id = $2";

// The time in ns, to a microsecond: a number has no room for more.
export function wallClockNs() {
  return Math.round((performance.timeOrigin + performance.now()) * 1e3) * 1e3;
}

// Update the row; the pool commits each statement.
export async function doWork(pool, row) {
  // With a name, the statement is prepared once per connection, as in asyncpg.
  await pool.query({ name: "work", text: SET, values: [wallClockNs(), row] });
}

export function openPool() {
  return new pg.Pool({ connectionString: DATABASE_URL, min: CONNECTIONS, max: CONNECTIONS, idleTimeoutMillis: 0 });
}

// Run SQL on a connection of its own.
export async function execute(sql) {
  const client = new pg.Client({ connectionString: DATABASE_URL });
  await client.connect();
  try {
    return (await client.query(sql)).rows;
  } finally {
    await client.end();
  }
}
