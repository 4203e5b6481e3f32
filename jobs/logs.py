"""What happens in a run as JSON lines on stderr, for machines to read; one place for their form.

Every line has `time`, `level`, `event` and what its event is about: `run`, `shard`, `replica`,
`node`, ... No url, path or option of a store is logged but within an error's text, which is the one
that the terminal shows.
"""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

LOGGER = "saliency"
FIELDS = "fields"


class JsonLines(logging.Formatter):
    """One JSON object a record, in ASCII: nothing of a name or an error can begin a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's message is its event."""
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        return json.dumps(said, default=str)


def to_stderr() -> None:
    """Have this process log to its stderr; a second call changes nothing."""
    logger = logging.getLogger(LOGGER)
    if _is_told(logger):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def log(event: str, fields: Mapping[str, Any], level: int = logging.INFO) -> None:
    """Log an event, in a process that was told `to_stderr`; in others nothing happens."""
    logger = logging.getLogger(LOGGER)
    if _is_told(logger):
        logger.log(level, event, extra={FIELDS: dict(fields)})


def _is_told(logger: logging.Logger) -> bool:
    return any(isinstance(handler.formatter, JsonLines) for handler in logger.handlers)
