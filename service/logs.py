"""JSON lines on stdout, written by a thread of their own so that a blocked pipe never blocks a request.

Owns the format of a line and the bounded buffer between the service and stdout. Knows no request.
"""

import atexit
import json
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, BinaryIO

import orjson

request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)

MAX_LINE_BYTES = 8 * 1024
_GATHER_SECONDS = (
    0.05  # lines of this long are written at once: a thread woken for each would fight for the interpreter
)
_BUFFERED_LINES = 10_000  # at 300 bytes a line 3 MB: what a stalled reader of the pipe may cost
_NAMES = {level: name.lower() for name, level in logging.getLevelNamesMapping().items()}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def json_line(record: logging.LogRecord) -> bytes:
    """One record as a JSON object in ASCII-safe UTF-8: time, level, event, then what was given as `extra`."""
    given = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    if record.exc_info:
        given["exception"] = "".join(traceback.format_exception(*record.exc_info))
    return _line(record.created, record.levelname.lower(), record.getMessage(), record.name, given)


def log(logger: logging.Logger, level: int, event: str, fields: Mapping[str, Any]) -> None:
    """As `logger.log(level, event, extra=fields)`, for the line that every request writes, at a quarter of its cost.

    Where a LineWriter takes all lines it gets this one without a LogRecord in between. `level` is one of `logging`'s,
    and enabled: whoever gathers the fields has asked.
    """
    handlers = logging.root.handlers
    if len(handlers) == 1 and isinstance(writer := handlers[0], LineWriter):
        if writer.has_room():
            writer.write(_line(time.time(), _NAMES[level], event, logger.name, fields))
    else:
        logger.log(level, event, extra=fields)


def _line(created: float, level: str, event: str, logger: str, fields: Mapping[str, Any]) -> bytes:
    line: dict[str, Any] = {"ts": _timestamp(int(created * 1000)), "level": level, "event": event, "logger": logger}
    if request_id := request_id_var.get():
        line["request_id"] = request_id
    line |= fields
    encoded = _ascii_json(line)
    if len(encoded) <= MAX_LINE_BYTES:
        return encoded
    for length in (1024, 256, 64):
        if len(encoded) <= MAX_LINE_BYTES:
            return encoded
        encoded = _ascii_json({key: str(value)[:length] for key, value in line.items()} | {"cut": True})
    if len(encoded) <= MAX_LINE_BYTES:
        return encoded
    kept = {key: str(line[key])[:256] for key in ("ts", "level", "event", "logger")}
    return _ascii_json(kept | {"cut": True})


@lru_cache(maxsize=2)  # lines are written many at a time
def _timestamp(milliseconds: int) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def _ascii_json(line: dict[str, Any]) -> bytes:
    """JSON in which every character is ASCII: nothing in a line can move a terminal's cursor or hide text."""
    try:
        encoded = orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS)
        if encoded.isascii() and b"\x7f" not in encoded:
            return encoded
        return json.dumps(orjson.loads(encoded)).replace("\x7f", "\\u007f").encode()
    except TypeError:  # integers beyond 64 bits, lone surrogates, odd keys
        return json.dumps({str(key): repr(value) for key, value in line.items()}).replace("\x7f", "\\u007f").encode()


class LineWriter(logging.Handler):
    """Hands lines to a writer thread through a bounded buffer; counts what a stalled sink makes it drop."""

    def __init__(self, stream: BinaryIO, capacity: int = _BUFFERED_LINES) -> None:
        super().__init__()
        self._stream = stream
        self._capacity = capacity
        self._lines: deque[bytes] = deque()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self.dropped = 0
        threading.Thread(target=self._write_forever, name="log-writer", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self.has_room():
                self.write(json_line(record))
        except Exception:  # noqa: BLE001  # logging must not raise into the code that logs
            self.handleError(record)

    def has_room(self) -> bool:
        """Whether a line may be written now; one that may not is counted as lost, and need not be made."""
        if len(self._lines) < self._capacity:
            return True
        self.dropped += 1
        return False

    def write(self, line: bytes) -> None:
        """Keep `line`, for which there was room."""
        self._lines.append(line)
        if not self._wake.is_set():
            self._idle.clear()
            self._wake.set()

    def flush(self, timeout_seconds: float = 2.0) -> None:
        """Wait until what was logged so far is written, at most `timeout_seconds`."""
        if self._lines:
            self._idle.clear()
            self._hurry.set()
            self._wake.set()
        self._idle.wait(timeout_seconds)

    def _write_forever(self) -> None:
        while True:
            self._wake.wait()
            self._hurry.wait(_GATHER_SECONDS)
            self._hurry.clear()
            self._wake.clear()
            while self._lines:
                lines = [self._lines.popleft() for _ in range(min(len(self._lines), 256))]
                try:
                    self._stream.write(b"\n".join(lines) + b"\n")
                    self._stream.flush()
                except (OSError, ValueError):  # the reader is gone: nothing left to tell anyone
                    self.dropped += len(lines)
            self._idle.set()


def _note_only_what_is_written() -> None:
    """No caller, thread, process or task in a record: our lines do not hold them, and they are a third of its cost."""
    logging._srcfile = None  # the documented way to say so
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    setattr(logging, "logAsyncioTasks", False)  # noqa: B010  # since 3.12


def configure(level: str, stream: BinaryIO | None = None) -> LineWriter:
    """Send every logger of the process through one LineWriter at `level`; returns it."""
    writer = LineWriter(stream or sys.stdout.buffer)
    root = logging.getLogger()
    root.handlers[:] = [writer]
    root.setLevel(level.upper())
    _note_only_what_is_written()
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"
        logger.setLevel(logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # our own line says what is wrong with a body
    logging.captureWarnings(True)
    atexit.register(writer.flush)
    return writer
