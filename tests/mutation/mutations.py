"""The guards of the promise: for each, a mutation that removes it and the tests that must fail."""

from typing import Final

from tests.mutation.of_access import ACCESS
from tests.mutation.of_attachments import ATTACHMENTS
from tests.mutation.of_jobs import JOBS
from tests.mutation.of_node_host import NODE_HOST
from tests.mutation.of_storage import STORAGE
from tests.mutation.of_traces import TRACES
from tests.mutation.of_webhooks import WEBHOOKS

_ALL: Final = (*JOBS, *STORAGE, *ACCESS, *WEBHOOKS, *TRACES, *NODE_HOST, *ATTACHMENTS)
MUTATIONS: Final = {mutation.name: mutation for mutation in _ALL}
