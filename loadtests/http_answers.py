"""Answers of a keep-alive connection, put together from what arrives. Content-Length only, one answer at a time."""


class Answers:
    """Feed it what arrives; it gives the head of each answer once its body is complete, and keeps that as `body`."""

    def __init__(self) -> None:
        self.body = b""
        self._buffer = b""
        self._expected = -1

    def feed(self, data: bytes) -> bytes | None:
        """The head of a complete answer, status line first; None where more has to come."""
        self._buffer += data
        if self._expected < 0:
            head, found, _ = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return None
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            self._expected = len(head) + 4 + int(length)
        if len(self._buffer) < self._expected:
            return None
        head, _, self.body = self._buffer.partition(b"\r\n\r\n")
        self._buffer, self._expected = b"", -1
        return head
