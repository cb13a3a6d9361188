"""Make random passwords for docker-compose.yaml: files in secrets/, and POSTGRES_PASSWORD in .env; keep the old ones.

Containers read the files as users of their own, so all may read them; the directory keeps other users of this machine
out.
"""

import hashlib
import os
import secrets
import sys
from pathlib import Path

#: What Cistern may do in Redis, as docs/operations.md says.
RULES = (
    "~cistern:* ~arq:* resetchannels &cistern:* +@connection +@transaction +@scripting +get "
    "+set +psetex +del +exists +expire +pexpire +zadd +zcard +zrangebyscore "
    "+zrem +zscore +lpush +ltrim +blpop +publish +subscribe +unsubscribe"
)
#: Who has no password may only ping.
REDIS_USERS = """\
user default on nopass resetkeys resetchannels -@all +ping
user cistern on #{digest} {rules}
"""


def main(folder: Path, environment: Path) -> None:
    """Write what is missing of both."""
    os.umask(0o077)
    folder.mkdir(exist_ok=True)
    for name in ("api_password", "worker_password", "redis_password"):
        if not (folder / name).exists():
            write(folder / name, f"{secrets.token_hex(24)}\n")
    digest = hashlib.sha256((folder / "redis_password").read_text().rstrip("\r\n").encode()).hexdigest()
    write(folder / "redis_users", REDIS_USERS.format(digest=digest, rules=RULES))
    text = environment.read_text() if environment.exists() else ""
    if "POSTGRES_PASSWORD=" not in text:
        with environment.open("a") as file:
            file.write(f"POSTGRES_PASSWORD={secrets.token_hex(24)}\n")


def write(file: Path, text: str) -> None:
    """Write a file that all users may read."""
    file.unlink(missing_ok=True)
    file.write_text(text)
    file.chmod(0o444)


if __name__ == "__main__":
    given = [*map(Path, sys.argv[1:])]
    main(*(given or [Path("secrets"), Path(".env")]))
