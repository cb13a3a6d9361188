// The headers of every request of a script. They say that a page of this API has sent it, and which project the page
// shows: another tab may have chosen another one since, and nothing may be changed in a project that nobody looks at.

const { project } = document.body.dataset;

export const HEADERS = { "X-Cistern-Session": "1", ...(project === undefined ? {} : { "Cistern-Project": project }) };
