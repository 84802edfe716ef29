"""JSON lines, and the thread that writes them."""

import atexit
import io
import json
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.logs import MAX_LINE_BYTES, LineWriter, configure, json_line, request_id_var

PATIENCE_SECONDS = 20.0


def record(message: str = "event", level: int = logging.INFO, exc_info: Any = None, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("service.test", level, __file__, 1, message, None, exc_info)
    vars(made).update(extra)
    return made


def parsed(made: logging.LogRecord) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(json_line(made))
    return line


class Pipe(io.RawIOBase):
    """A stream whose reader can stall: `write` then waits until `open` is set."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.blocked = threading.Event()
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if not self.open.is_set():
            self.blocked.set()
            assert self.open.wait(PATIENCE_SECONDS)
        self.data += data
        return len(data)

    @property
    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in bytes(self.data).splitlines()]


# A line


def test_a_line_has_time_level_event_logger_and_what_was_given() -> None:
    made = record("started", logging.WARNING, threads=2, ready=True, reason="serving")
    made.created = 1_700_000_000.25
    assert parsed(made) == {
        "ts": "2023-11-14T22:13:20.250+00:00",
        "level": "warning",
        "event": "started",
        "logger": "service.test",
        "threads": 2,
        "ready": True,
        "reason": "serving",
    }


def test_the_request_id_of_the_context_is_in_the_line() -> None:
    token = request_id_var.set("abc-123")
    try:
        assert parsed(record())["request_id"] == "abc-123"
    finally:
        request_id_var.reset(token)
    assert "request_id" not in parsed(record())


def test_arguments_are_filled_into_the_message() -> None:
    made = logging.LogRecord("uvicorn.error", logging.INFO, __file__, 1, "%s of %d", ("two", 3), None)
    assert parsed(made)["event"] == "two of 3"


def test_an_exception_is_in_the_line_with_its_traceback() -> None:
    try:
        raise ValueError("what went wrong")
    except ValueError:
        line = json_line(record(exc_info=sys.exc_info()))
    assert line.count(b"\n") == 0
    text = json.loads(line)["exception"]
    assert text.startswith("Traceback")
    assert text.rstrip().endswith("ValueError: what went wrong")


@pytest.mark.parametrize(
    "hostile", ['a"b', "a\\b", 'line\nbreak", "level": "error', "\x00\x1b[31m\x7f", "\u2028\u0085"]
)
def test_what_a_caller_sends_cannot_make_a_second_line_or_field(hostile: str) -> None:
    line = json_line(record(hostile, model=hostile))
    assert len(line.splitlines()) == 1
    assert json.loads(line)["event"] == hostile
    assert json.loads(line)["model"] == hostile
    assert json.loads(line)["level"] == "info"


@pytest.mark.parametrize("text", ["K\u00e4se", "\U0001f408", "\u009b31m", "\u202e"])
def test_a_line_is_ascii_whatever_is_logged(text: str) -> None:
    line = json_line(record(text, model=text))
    assert line.isascii()
    assert json.loads(line)["model"] == text


@pytest.mark.parametrize(
    "value",
    ["\udcff", 1 << 70, {("a", 1): 2}, float("nan"), b"\xff", object()],
    ids=["surrogate", "large integer", "tuple as key", "nan", "bytes", "object"],
)
def test_anything_can_be_logged(value: object) -> None:
    assert "thing" in parsed(record(thing=value))


@pytest.mark.parametrize(
    "value",
    ["x" * 100_000, ["y" * 100] * 1000, {str(n): n for n in range(9999)}],
    ids=["text", "list", "dictionary"],
)
def test_a_long_line_is_cut_and_says_so(value: object) -> None:
    line = json_line(record("event", thing=value, model="cats"))
    assert len(line) <= MAX_LINE_BYTES
    made = json.loads(line)
    assert made["cut"] is True
    assert made["event"] == "event"
    assert made["model"] == "cats"
    assert 0 < len(made["thing"]) < 100_000


def test_a_line_of_ordinary_length_is_not_cut() -> None:
    line = parsed(record("event", thing="x" * 2000))
    assert line["thing"] == "x" * 2000
    assert "cut" not in line


fields = st.dictionaries(
    st.text("abcdefg_", min_size=1, max_size=9), st.tuples(st.text(max_size=9), st.integers(0, 900))
)


@given(extra=fields)
@example(extra={f"{number}": ("\0", 2000) for number in range(3)})
@example(extra={f"{number}": ("y", 2000) for number in range(10)})
@example(extra={f"{number}": ("y", 2000) for number in range(60)})
@settings(max_examples=60, deadline=None)
def test_whatever_is_logged_gives_one_bounded_line_of_json(extra: dict[str, tuple[str, int]]) -> None:
    line = json_line(record("event", **{f"x_{key}": text * times for key, (text, times) in extra.items()}))
    assert len(line) <= MAX_LINE_BYTES, f"the line has {len(line)} bytes"
    assert json.loads(line)["event"] == "event"


# The writer


def test_what_is_logged_is_written_in_order_a_line_each() -> None:
    pipe = Pipe()
    writer = LineWriter(pipe)  # type: ignore[arg-type]
    for number in range(1000):
        writer.handle(record(f"event {number}"))
    writer.flush(PATIENCE_SECONDS)
    assert pipe.events == [f"event {number}" for number in range(1000)]
    assert bytes(pipe.data).endswith(b"\n")
    assert writer.dropped == 0


def test_what_is_logged_is_pushed_through_a_buffered_stream() -> None:
    pipe = Pipe()
    stream = io.BufferedWriter(pipe)
    writer = LineWriter(stream)
    writer.handle(record())
    writer.flush(PATIENCE_SECONDS)
    assert pipe.events == ["event"]


def test_a_stalled_reader_costs_lines_and_not_time() -> None:
    pipe = Pipe()
    writer = LineWriter(pipe, capacity=5)  # type: ignore[arg-type]
    pipe.open.clear()
    writer.handle(record("taken by the writer"))
    assert pipe.blocked.wait(PATIENCE_SECONDS)
    for number in range(12):
        writer.handle(record(f"event {number}"))
    assert writer.dropped == 7
    pipe.open.set()
    writer.flush(PATIENCE_SECONDS)
    assert pipe.events == ["taken by the writer", *(f"event {number}" for number in range(5))]


def test_lines_are_written_again_when_the_reader_comes_back() -> None:
    pipe = Pipe()
    writer = LineWriter(pipe, capacity=1)  # type: ignore[arg-type]
    pipe.open.clear()
    writer.handle(record("first"))
    assert pipe.blocked.wait(PATIENCE_SECONDS)
    writer.handle(record("second"))
    writer.handle(record("lost"))
    pipe.open.set()
    writer.flush(PATIENCE_SECONDS)
    writer.handle(record("third"))
    writer.flush(PATIENCE_SECONDS)
    assert pipe.events == ["first", "second", "third"]
    assert writer.dropped == 1


def test_a_flush_gives_up_on_a_stalled_reader() -> None:
    pipe = Pipe()
    writer = LineWriter(pipe)  # type: ignore[arg-type]
    pipe.open.clear()
    writer.handle(record())
    assert pipe.blocked.wait(PATIENCE_SECONDS)
    writer.flush(0.01)
    assert pipe.events == []
    pipe.open.set()
    writer.flush(PATIENCE_SECONDS)
    assert pipe.events == ["event"]


def test_a_flush_with_nothing_to_write_returns_at_once() -> None:
    started_at = time.monotonic()
    LineWriter(Pipe()).flush(PATIENCE_SECONDS)  # type: ignore[arg-type]
    assert time.monotonic() - started_at < PATIENCE_SECONDS / 2


def test_a_reader_that_is_gone_is_counted_and_does_not_stop_the_writer() -> None:
    class Gone(Pipe):
        failures = 1

        def write(self, data: Any) -> int:
            if self.failures:
                self.failures -= 1
                raise BrokenPipeError
            return super().write(data)

    pipe = Gone()
    writer = LineWriter(pipe)  # type: ignore[arg-type]
    writer.handle(record("lost"))
    writer.flush(PATIENCE_SECONDS)
    writer.handle(record("written"))
    writer.flush(PATIENCE_SECONDS)
    assert writer.dropped == 1
    assert pipe.events == ["written"]


def test_a_record_that_cannot_be_said_raises_nothing_into_the_code_that_logs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = Pipe()
    writer = LineWriter(pipe)  # type: ignore[arg-type]
    writer.handle(logging.LogRecord("x", logging.INFO, __file__, 1, "%d", ("not a number",), None))
    writer.handle(record("next"))
    writer.flush(PATIENCE_SECONDS)
    assert pipe.events == ["next"]
    assert "Logging error" in capsys.readouterr().err


# Configuration of the process


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], tuple[LineWriter, Pipe]]]:
    """Configures the process's logging as `serve` does, and puts everything back afterwards."""
    names = ("", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio")
    loggers = [logging.getLogger(name) for name in names]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    registered: list[object] = []
    monkeypatch.setattr(atexit, "register", registered.append)

    def configure_with(level: str) -> tuple[LineWriter, Pipe]:
        pipe = Pipe()
        return configure(level, pipe), pipe  # type: ignore[arg-type]

    yield configure_with
    assert len(registered) == 1, "what is left in the buffer is not written at exit"
    logging.captureWarnings(False)
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


def test_all_loggers_write_through_one_writer_at_the_level(configured: Callable[..., tuple[LineWriter, Pipe]]) -> None:
    writer, pipe = configured("warning")
    logging.getLogger("service.anything").info("too low")
    logging.getLogger("service.anything").warning("high enough")
    logging.getLogger("uvicorn.error").warning("from uvicorn")
    logging.getLogger("uvicorn.access").error("GET / 200")
    logging.getLogger("asyncio").info("too low")
    writer.flush(PATIENCE_SECONDS)
    assert pipe.events == ["high enough", "from uvicorn"]


def test_warnings_of_python_are_lines_too(configured: Callable[..., tuple[LineWriter, Pipe]]) -> None:
    writer, pipe = configured("info")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)  # catch_warnings put Python's own way back
        warnings.warn("old fashioned", UserWarning, stacklevel=1)
    writer.flush(PATIENCE_SECONDS)
    (event,) = pipe.events
    assert "old fashioned" in event
