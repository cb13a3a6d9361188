// The header of every request of the pages' scripts: without it the cookie of the session does not count. A page of
// another site cannot add it.

export const HEADERS = { "X-Cistern-Session": "1" };
