"""Celery on Redis, with its pools of threads and of processes."""

from collections.abc import Iterable

from celery import Celery

from peers.peer import Peer
from peers.work import REDIS_URL, Threaded

work = Threaded()
app = Celery("peers", broker=REDIS_URL.replace("unix://", "redis+socket://"))
app.conf.update(
    task_ignore_result=True,
    task_acks_late=False,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    worker_prefetch_multiplier=100,
    broker_connection_retry_on_startup=True,
)


@app.task(name="update")
def update(row: int) -> None:
    """Do the work."""
    work.do(row)


async def one(row: int) -> None:
    """Enqueue one job."""
    update.delay(row)


async def many(rows: Iterable[int]) -> None:
    """Enqueue jobs one after the other, through one producer."""
    with app.producer_pool.acquire(block=True) as producer:
        for row in rows:
            update.apply_async((row,), producer=producer)


def peer(name: str, pool: str, concurrency: int, pace: int) -> Peer:
    """Make a peer of one of the pools."""
    quiet = ("--loglevel", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat")
    return Peer(
        name=name,
        worker=("-m", "celery", "-A", "peers.celery", "worker", "-P", pool, "-c", str(concurrency), *quiet),
        settings=f"{pool} {concurrency}, prefetch 100 each, early acknowledgement, no results, events or gossip",
        keeps="Nothing, as set: a message is acknowledged when it is begun. With acks_late: again after an hour.",
        loses="Every job that a dying worker had begun; all jobs that Redis loses.",
        pace=pace,
        one=one,
        many=many,
    )


PEERS = (peer("Celery (threads)", "threads", 8, 450), peer("Celery (prefork)", "prefork", 2, 500))
