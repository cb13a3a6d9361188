"""``python -m worker``: one worker process, under a supervisor."""

from worker.main import main

main()
