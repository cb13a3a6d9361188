"""``python -m worker.node``: one node agent, as ``cistern node`` runs it."""

from domain.early_stop import end_on_sigterm

end_on_sigterm()

from worker.node.main import main  # noqa: E402 (takes half a second)

main()
