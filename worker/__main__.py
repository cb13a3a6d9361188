"""``python -m worker``: one worker process, under a supervisor."""

from domain.early_stop import end_on_sigterm

end_on_sigterm()

from worker.main import main  # noqa: E402 (takes half a second)

main()
