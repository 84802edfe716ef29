"""The files of one version as they are loaded: each is read once, checked, and used from memory.

What was checked is what serves: between a checksum and a load nobody can put other bytes there. Files are reached from
the model's folder downwards by descriptors that follow no link, so that nothing outside of it is ever read.
Knows names and bytes; judges no content.
"""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import ModelLoadError

SUMS_NAME = "SHA256SUMS"
MAX_VERSION_BYTES = 2 << 30  # of one version's files together: where a single ONNX file ends
_SUM_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")  # as `sha256sum` writes them
_MODE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe must not block the load


class ModelFiles:
    """A model's files, and those of one version. Blocking; used by one load.

    With `sums_required` a version without SHA256SUMS is refused.
    """

    def __init__(
        self,
        folder: Path,
        version: int | None = None,
        *,
        sums_required: bool = False,
        max_bytes: int = MAX_VERSION_BYTES,
    ) -> None:
        self._folder = folder
        self._version = "" if version is None else str(version)
        self._max_bytes = max_bytes
        self._read_bytes = 0
        self._known: dict[str, bytes | None] = {}
        self._sums: dict[str, str] | None = None
        if version is not None:
            self._sums = self._read_sums(sums_required)

    def of_model(self, name: str) -> bytes | None:
        """A file beside `model.toml`; None where there is none. Raises ModelLoadError."""
        return self._read("", name)

    def of_version(self, name: str) -> bytes | None:
        """A file of the version's folder; None where there is none, or no version. Raises ModelLoadError."""
        return self._read(self._version, name) if self._version else None

    def sha256(self, name: str) -> str:
        """Of a file of the version that was read, in hexadecimal."""
        content = self.of_version(name)
        assert content is not None
        return hashlib.sha256(content).hexdigest()

    def names(self) -> list[str]:
        """Of the files in the version's folder."""
        with self._open_folder(self._version) as descriptor:
            return sorted(entry.name for entry in os.scandir(descriptor) if entry.is_file(follow_symlinks=False))

    def release(self) -> None:
        """Let go of what was read."""
        self._known.clear()

    def _read(self, place: str, name: str) -> bytes | None:
        path = f"{place}/{name}" if place else name
        if path not in self._known:
            content = self._read_file(place, name, path)
            if content is not None and self._sums is not None:
                self._verify(place, name, path, content)
            self._known[path] = content
        return self._known[path]

    def _verify(self, place: str, name: str, path: str, content: bytes) -> None:
        """What lies beside model.toml is every version's: it is checked where SHA256SUMS names it as `../`."""
        assert self._sums is not None
        expected = self._sums.get(name if place else f"../{name}")
        if expected is None:
            if place:
                raise ModelLoadError(f"{path} is not listed in {SUMS_NAME}: write it again", gate="checksum")
        elif hashlib.sha256(content).hexdigest() != expected:
            raise ModelLoadError(f"{path} is not what {SUMS_NAME} says: copy the version again", gate="checksum")

    def _read_sums(self, required: bool) -> dict[str, str] | None:
        path = f"{self._version}/{SUMS_NAME}"
        content = self._read_file(self._version, SUMS_NAME, path)
        if content is None:
            if required:
                raise ModelLoadError(f"{path} is missing, and repository.require_checksums is on", gate="checksum")
            return None
        sums = {}
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            match = _SUM_LINE.fullmatch(line)
            if match is None:
                raise ModelLoadError(f"{path}: line {number} is not as sha256sum writes it", gate="checksum")
            sums[match[2].removeprefix("./")] = match[1].lower()
        there = set(self.names())
        missing = [name for name in sums if "/" not in name and name not in there]
        if missing:
            raise ModelLoadError(f"{path} lists {missing[0][:128]!r}, which is missing", gate="checksum")
        return sums

    def _read_file(self, place: str, name: str, path: str) -> bytes | None:
        try:
            with self._open_folder(place) as folder:
                descriptor = os.open(name, _MODE, dir_fd=folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from None
        try:
            self._check(path, os.fstat(descriptor))
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read()
                if len(content) != os.fstat(descriptor).st_size:
                    raise ModelLoadError(f"{path} changed while it was read", gate="files")
                return content
        except OSError as error:
            raise _unreadable(path, error) from None
        finally:
            os.close(descriptor)

    def _check(self, path: str, status: os.stat_result) -> None:
        """Raises ModelLoadError on what is no plain file of its own, or too large."""
        if not stat.S_ISREG(status.st_mode):
            raise ModelLoadError(f"{path} is not a plain file", gate="files")
        if status.st_nlink > 1:
            raise ModelLoadError(f"{path} has another name elsewhere (a hard link): copy it", gate="files")
        self._read_bytes += status.st_size
        if self._read_bytes > self._max_bytes:
            raise ModelLoadError(
                f"{path}: the version has more than repository.max_version_bytes = {self._max_bytes:,} bytes",
                gate="size",
            )

    @contextmanager
    def _open_folder(self, place: str) -> Iterator[int]:
        """The model's folder, or one in it. Raises OSError; a link is one."""
        model = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if not place:
                yield model
                return
            version = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=model)
            try:
                yield version
            finally:
                os.close(version)
        finally:
            os.close(model)


def _unreadable(path: str, error: OSError) -> ModelLoadError:
    reason = error.strerror or type(error).__name__
    if error.errno in (errno.ELOOP, errno.ENOTDIR):  # O_NOFOLLOW met one
        reason = "it is a link, or lies behind one: copy the file"
    return ModelLoadError(f"{path} cannot be read: {reason}", gate="files")
