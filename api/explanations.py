"""Why a request is refused and what to do about it, by problem code. Titles and statuses are in `api.problems`."""

from collections.abc import Mapping
from typing import Final, NamedTuple


class Explanation(NamedTuple):
    """The cause of an error, and the remedy."""

    cause: str
    remedy: str


#: The remedy for an id that is not found.
_LIST: Final = "List what there is; it may have been deleted, or be in another project."

PROBLEM_EXPLANATIONS: Final[Mapping[str, Explanation]] = {
    code: Explanation(*texts)
    for code, texts in {
        "attachment-not-found": ("The volume has no attachment with this id.", _LIST),
        "backend-overcommitted": (
            "The backend would promise more than its overcommit ratio allows.",
            "Use another backend, delete volumes, add capacity, or raise `overcommit` in CISTERN_BACKENDS.",
        ),
        "bad-cursor": (
            "The cursor comes from another list or other filters, or is damaged.",
            "Begin at the first page; send a cursor back unchanged, with the same filters.",
        ),
        "child-job": (
            "The job is a lane of a bulk job and is managed by it.",
            "Cancel or retry the job that `job_id` names.",
        ),
        "conflict": (
            "The state of the resource does not allow this operation.",
            "Read the resource, and request again when its state allows it.",
        ),
        "content-too-large": (
            "The body is larger than this route accepts.",
            "Send less; select volumes by labels or backend rather than by ids.",
        ),
        "cross-site": (
            "A browser sent a change from a page of another site.",
            "Use the dashboard of this installation, or a client that is not a browser.",
        ),
        "database-unavailable": (
            "PostgreSQL does not respond, or lost the connection. A change may have been accepted all the same.",
            "Send it again, with the same Idempotency-Key if it had one. `cistern doctor` looks for the reason.",
        ),
        "growth-required": (
            "The request does not say by how much to grow.",
            "Send exactly one of `to`, `by` and `percent`; in a bulk expansion, `policy` is another choice.",
        ),
        "headers-too-large": (
            "The headers, or the request line, are larger than accepted.",
            "Send fewer or shorter headers and query parameters.",
        ),
        "host-missing": (
            "The request has no Host header, or one that cannot be read.",
            "Send one Host header, as every HTTP client does.",
        ),
        "host-not-allowed": (
            "The Host is neither a name of loopback nor listed in CISTERN_HOSTS.",
            "Use an address that is listed, or add the name to CISTERN_HOSTS.",
        ),
        "idempotency-key-reused": (
            "This Idempotency-Key was used within 24 hours, with another path or body.",
            "Generate a new key for each new request; repeat one only with the same path and body.",
        ),
        "internal": (
            "An unexpected error, or a fault in Cistern or a storage driver.",
            "Find the request id or the job in the server's log, which has the traceback, and report it.",
        ),
        "invalid": (
            "A value is missing, unknown, or outside of what is allowed.",
            "Correct the fields that `errors` names; /docs has the type and limits of each.",
        ),
        "job-ended": (
            "The job has ended and cannot be cancelled any more.",
            "Read the job's status; retry it if it did not achieve what you want.",
        ),
        "job-failed": (
            "The work was done at once (v0), and failed or was cancelled.",
            "Look at the job's `error.code`, which has an explanation of its own.",
        ),
        "job-not-found": ("No job of the project has this id; old jobs are pruned.", _LIST),
        "job-not-retryable": (
            "The job has succeeded, has not ended, or was retried before.",
            "Look for a newer job whose `retry_of` is this one, or send a new request.",
        ),
        "key-invalid": (
            "The key is unknown, revoked or expired.",
            "Use another key; an owner makes one with `cistern keys create`.",
        ),
        "key-missing": (
            "The request has no key.",
            "Send `Authorization: Bearer cst_...`, or sign in to the dashboard.",
        ),
        "key-not-found": ("No key of the project has this id.", _LIST),
        "malformed-json": ("The body is not JSON in UTF-8.", "Correct the syntax; `detail` says where it ends."),
        "malformed-request": (
            "The bytes that arrived are not HTTP/1.1.",
            "Use an HTTP client; look for a proxy that speaks another protocol, such as TLS, to this port.",
        ),
        "method-not-allowed": (
            "The path exists, but does not support this method.",
            "Use one of the methods in the Allow header.",
        ),
        "name-taken": (
            "The name is in use in this project, or for this volume.",
            "Choose another name, or delete what has it.",
        ),
        "no-keys": (
            "The installation has no key yet, so nobody can be let in.",
            "Make the first one where the API runs: `cistern keys create NAME --role system`.",
        ),
        "not-found": ("There is nothing at this path.", "Compare the path with /docs; paths have no slash at the end."),
        "precondition-failed": (
            "The resource has changed since the ETag in If-Match was read.",
            "Read it again, decide again, and send the new ETag.",
        ),
        "project-not-found": (
            "There is no project with this id or name.",
            "List the projects with `cistern projects list`.",
        ),
        "quota-exceeded": (
            "A limit of the project leaves less room than was requested.",
            "Delete what is not needed, or ask the holder of a system key to raise the limit.",
        ),
        "rate-limited": (
            "The key, or all keys of its project, sent more than CISTERN_RATE_LIMIT allows.",
            "Wait as long as Retry-After says; wait for jobs with `Prefer: wait` rather than by fast polling.",
        ),
        "request-timeout": (
            "The headers or the body did not arrive in time.",
            "Send the request again; look at the network if it happens often.",
        ),
        "role-insufficient": (
            "The role of the key does not include this request.",
            "Use a key with the role that `detail` names.",
        ),
        "schedule-busy": (
            "The job of the schedule's previous run is still active.",
            "Wait for the job that `job_id` names, or cancel it.",
        ),
        "schedule-not-found": ("No schedule of the project has this id.", _LIST),
        "schedule-owner-gone": (
            "The owner of the schedule has no valid key with the role that its runs need.",
            "Change the schedule with an owner's key, which takes it over.",
        ),
        "shrink-refused": (
            "The requested size is smaller than the volume. Volumes only grow.",
            "Request a larger size, or create a smaller volume and copy what is needed.",
        ),
        "size-limit-exceeded": ("The volume would be larger than 64 TiB.", "Request less; use several volumes."),
        "snapshot-busy": (
            "Another operation is running on the snapshot.",
            "Wait for the job that `job_id` names, then request again.",
        ),
        "snapshot-not-found": ("No snapshot of the project has this id.", _LIST),
        "snapshot-unusable": (
            'The snapshot is in state "error", since a job on it failed.',
            "Retry the failed job, or delete the snapshot.",
        ),
        "storage-error": (
            "A storage driver failed.",
            "Try again; `cistern doctor` and the worker's log have the reason.",
        ),
        "too-many-connections": (
            "The process has as many connections as it accepts.",
            "Try again later, close connections that are not used, or run more API processes.",
        ),
        "too-many-dry-runs": ("Other dry runs wait for their turn.", "Try again after Retry-After."),
        "too-many-held-requests": (
            "Too many requests wait for jobs or follow them.",
            "Poll the job without `Prefer: wait`, or wait for fewer jobs at once.",
        ),
        "too-many-webhooks": ("The project has as many webhooks as it may have.", "Delete one first."),
        "unavailable": (
            "A service that Cistern depends on does not respond.",
            "Try again; `GET /readyz` and `cistern doctor` say which.",
        ),
        "unknown-backend": (
            "No worker serves, or ever served, a backend of this name.",
            "Choose one from `cistern backends`, or add it to the CISTERN_BACKENDS of a worker.",
        ),
        "unknown-node": (
            "No agent has run on this node within the last hour.",
            "Choose one from `cistern nodes`, or run `cistern node` there.",
        ),
        "unsupported-media-type": ("The body is not declared as JSON.", "Send `Content-Type: application/json`."),
        "volume-attached": (
            "`holder` uses the volume on the node `node`.",
            "Detach it there: `cistern volumes umount`; `--force` if the node does not answer.",
        ),
        "volume-busy": (
            "Another operation is running on the volume.",
            "Wait for the job that `job_id` names, then request again. A bulk job waits for a while by itself.",
        ),
        "volume-has-snapshots": ("The volume has snapshots, which depend on it.", "Delete the snapshots first."),
        "volume-not-found": ("No volume of the project has this id.", _LIST),
        "volume-unusable": (
            'The volume is in state "error", since a job on it failed.',
            "Retry the failed job, or delete the volume.",
        ),
        "webhook-host-refused": (
            "CISTERN_WEBHOOK_HOSTS does not list the host.",
            "Use a host that is listed, or add it for the API and for all workers.",
        ),
        "webhook-not-found": ("No webhook of the project has this id.", _LIST),
    }.items()
}
