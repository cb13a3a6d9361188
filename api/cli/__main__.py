"""The command ``cistern``, also ``python -m api.cli``."""

from domain.early_stop import end_on_sigterm

end_on_sigterm()

from api.cli.app import main  # noqa: E402 (takes a quarter of a second)

if __name__ == "__main__":
    main()
