// The headers of every request of the pages' scripts. Without the first, the cookie of the session does not count: a page
// of another site cannot add it. The second names the project that the page shows, as another tab may have chosen another
// project since.

const { project } = document.body.dataset;

export const HEADERS = { "X-Cistern-Session": "1", ...(project === undefined ? {} : { "Cistern-Project": project }) };
