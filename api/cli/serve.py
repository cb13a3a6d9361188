"""The commands ``cistern serve`` and ``cistern work``: one API process, one worker process.

`uvicorn api.main:app`, `python -m worker` and `arq worker.main.WorkerSettings` run the same code.
"""

from typing import Final

#: Limit for open requests after a stop signal: a client that no longer reads must not keep the process from ending.
GRACEFUL_SECONDS: Final = 5


#: How long an idle connection is kept, in seconds: longer than clients wait between two polls, and than load balancers
#: (60 s) keep theirs, so that it is not the server that closes a connection on which a request is under way.
KEEP_ALIVE_SECONDS: Final = 75


def serve(*, host: str, port: int, access_log: bool) -> None:
    """Run the API; uvicorn handles the signals and the exit status."""
    import uvicorn  # noqa: PLC0415 (`work` does not need it)

    uvicorn.run(
        "api.main:app",
        host=host,
        port=port,
        access_log=access_log,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )


def work() -> None:
    """Run a worker, as ``python -m worker`` does."""
    from worker.main import main  # noqa: PLC0415 (`serve` does not need it)

    main()
