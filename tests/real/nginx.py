"""The project's nginx configuration in a real nginx of this machine, run as a process of its own on a free port.

Owns the folder with the rendered configuration, the process and its access log. Knows nothing of the replicas but
their ports.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.server_process import PROJECT, poll

CONFIGURATION = PROJECT / "deploy" / "nginx"
COMMAND = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def rendered(folder: Path, port: int, replicas: Sequence[int], changes: Mapping[str, str] | None = None) -> Path:
    """The configuration as it stands in deploy/nginx, but for addresses and places; returns its main file.

    Every replacement must find its text, so that a change of the configuration cannot pass by the tests.
    """
    main = (CONFIGURATION / "nginx.conf").read_text()
    places = {
        "/tmp/": f"{folder}/",  # first: the folder itself may lie under /tmp
        "listen 8080;": f"listen 127.0.0.1:{port};",
        "/dev/stdout": f"{folder}/access.log",
        "/dev/stderr": f"{folder}/error.log",
    }
    for old, new in (places | dict(changes or {})).items():
        assert old in main, f"deploy/nginx/nginx.conf no longer has {old!r}"
        main = main.replace(old, new)
    upstream = (CONFIGURATION / "upstream.conf").read_text()
    names = re.findall(r"^server (\S+) ", upstream, re.MULTILINE)
    assert len(names) == len(replicas)
    for name, replica in zip(names, replicas, strict=True):
        upstream = upstream.replace(name, f"127.0.0.1:{replica}")
    (folder / "upstream.conf").write_text(upstream)
    (folder / "nginx.conf").write_text(main)
    return folder / "nginx.conf"


def arguments(main: Path) -> list[str]:
    assert COMMAND is not None
    # As root, nginx would hand its workers to a user who may not enter a test's folder.
    user = "user root; " if os.geteuid() == 0 else ""
    return [
        COMMAND,
        "-p",
        str(main.parent),
        "-c",
        str(main),
        "-e",
        str(main.parent / "error.log"),
        "-g",
        f"{user}daemon off;",
    ]


class NginxProcess:
    """One running nginx in front of `replicas` (ports). Use as a context manager."""

    def __init__(self, folder: Path, replicas: Sequence[int], changes: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self._folder = folder
        self._process = subprocess.Popen(arguments(rendered(folder, self.port, replicas, changes)))

    def __enter__(self) -> Self:
        poll(self._listens, "nginx listens", 10.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> int:
        """Let it finish what it has; the exit code. The access log is whole then."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
        try:
            return self._process.wait(20.0)
        finally:
            if self._process.poll() is None:
                self._process.kill()

    @property
    def access_log(self) -> list[dict[str, Any]]:
        """Its lines, each of which must be JSON."""
        return [json.loads(line) for line in (self._folder / "access.log").read_text().splitlines()]

    @property
    def errors(self) -> str:
        return (self._folder / "error.log").read_text()

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.errors
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
