"""``python -m worker``: one worker process, under supervision."""

from worker.main import main

main()
