"""An API process that kills itself after the COMMIT of a request, before it dispatches the job: ``... PORT``."""

import os
import signal
import sys
from typing import Any, NoReturn

import uvicorn

from domain.jobs.transport.job_queue import JobQueue


async def die(*_: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("outlived SIGKILL")


if __name__ == "__main__":
    setattr(JobQueue, "dispatch", die)  # noqa: B010
    uvicorn.run("api.main:app", port=int(sys.argv[1]), access_log=False, log_level="warning")
