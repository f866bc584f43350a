"""How the processes of the platform write their logs."""

import logging
import sys

import stamina
import structlog


def log_to_stderr() -> None:
    """JSON lines, or colours for a person; left alone if the program has set structlog up itself."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    # Retries are logged by whoever retries, with what they are about.
    stamina.instrumentation.set_on_retry_hooks([])
    if structlog.is_configured():
        return
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if terminal else [structlog.processors.dict_tracebacks]),
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
            if terminal
            else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
