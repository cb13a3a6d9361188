"""Celery on Redis, with a pool of threads or of processes."""

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


async def enqueue(row: int) -> None:
    """Enqueue one job."""
    update.delay(row)


async def enqueue_many(rows: Iterable[int]) -> None:
    """Enqueue jobs one after the other, through one producer."""
    with app.producer_pool.acquire(block=True) as producer:
        for row in rows:
            update.apply_async((row,), producer=producer)


def peer(name: str, pool: str, concurrency: int, expected_rate: int) -> Peer:
    """Return the peer with one of the pools."""
    quiet = ("--loglevel", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat")
    return Peer(
        name=name,
        worker=("-m", "celery", "-A", "peers.celery", "worker", "-P", pool, "-c", str(concurrency), *quiet),
        settings=f"{pool} {concurrency}, prefetch 100 each, early acknowledgement, no results, events or gossip",
        keeps="Nothing with these settings: messages are acknowledged early. With acks_late: redelivery after an hour.",
        loses="Every job that a dead worker had begun; all jobs that Redis loses.",
        expected_rate=expected_rate,
        enqueue=enqueue,
        enqueue_many=enqueue_many,
    )


PEERS = (peer("Celery (threads)", "threads", 8, 450), peer("Celery (prefork)", "prefork", 2, 500))
