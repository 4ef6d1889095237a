"""What the process says, on one stream: lines of JSON, or coloured text on a terminal.

INFO is lifecycle, WARNING is data dropped or degraded with its where; nothing is said per request. Records of the
standard library's `logging` (gRPC, asyncio) take the same form; below WARNING they are left out.
"""

import logging
import sys
from typing import Final, TextIO

import structlog
from structlog.typing import Processor

_SHARED: Final[tuple[Processor, ...]] = (
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)

# Without locals: they would bring the content of requests into the log.
_TRACEBACKS: Final = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def configure(stream: TextIO = sys.stderr, *, level: int = logging.INFO) -> None:
    """Sets the logging of the whole process: `__main__` calls it once, before anything is logged."""
    render: tuple[Processor, ...]
    if stream.isatty():
        render = (structlog.dev.ConsoleRenderer(),)
    else:
        render = (_TRACEBACKS, structlog.processors.JSONRenderer())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=(structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render),
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for chatty in ("grpc", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    structlog.configure(
        processors=(
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ),
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
