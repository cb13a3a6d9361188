"""What tests do to the private Redis."""

import shutil
import signal

from domain.embedded import EmbeddedServers


def restart_redis_empty(servers: EmbeddedServers) -> None:
    """Kill Redis, delete its data, and start it again at the same URL."""
    servers.redis.stop(signal.SIGKILL)
    shutil.rmtree(servers.data_dir / "redis")
    servers.redis.start()
