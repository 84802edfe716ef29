"""The image and its containers, for every test of the real thing: built once by buildah, run by podman under limits.

Owns the two tools' command lines. Needs root and what install.sh installs; knows nothing of HTTP but /readyz.
"""

import http.client
import json
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.server_process import PROJECT, poll

PORT = 8000  # inside the container

# What a careful cluster grants: no capability, nothing writable but /tmp, and a bound on everything.
# (Without --read-only-tmpfs=false, podman's --read-only leaves /run and /var/tmp writable.)
HARDENED = (
    *("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
)


def run(*command: str | Path, timeout_seconds: float = 60.0, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end. Raises AssertionError with what it said where it fails (unless `check` is False)."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_seconds, check=False)
    said = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert not check or done.returncode == 0, f"{' '.join(words)}: exit code {done.returncode}\n{said}"
    return done


@cache
def built_image(target: str = "demo", extra: str = "") -> str:
    """Build a target of the Dockerfile, once; layers of earlier builds are reused. Returns the image's name."""
    name = f"localhost/fovea:{target}" + (f"-{extra}" if extra else "")
    options = ("--format", "docker", "--isolation", "chroot", "--pull-never", "--layers", "--quiet")
    wanted = ("--target", target, "--build-arg", f"WITH={extra}", "-t", name)
    run("buildah", "bud", *options, *wanted, PROJECT, timeout_seconds=900.0)
    return name


def config(image: str) -> dict[str, Any]:
    """What the image says of itself: user, entry point, health check, labels."""
    return dict(json.loads(run("podman", "image", "inspect", image).stdout)[0])


@contextmanager
def mounted_root(image: str) -> Iterator[Path]:
    """The image's files, unpacked."""
    root = Path(run("podman", "image", "mount", image).stdout.strip())
    try:
        yield root
    finally:
        run("podman", "image", "unmount", image)


class Container:
    """A container that runs. `address` is its own on podman's bridge ("" without one), `port` the published one."""

    def __init__(self, name: str) -> None:
        self.name = name
        inspected = self.inspect()["NetworkSettings"]
        self.address = str(inspected["IPAddress"])
        published = (inspected["Ports"] or {}).get(f"{PORT}/tcp")
        self.port = int(published[0]["HostPort"]) if published else 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def logs(self) -> str:
        done = run("podman", "logs", self.name)
        return done.stdout + done.stderr

    @property
    def is_running(self) -> bool:
        return bool(self.inspect()["State"]["Running"])

    def inspect(self) -> dict[str, Any]:
        return dict(json.loads(run("podman", "container", "inspect", self.name).stdout)[0])

    def python(self, code: str) -> str:
        """What a line of Python prints inside the container, as the service's user."""
        return run("podman", "exec", self.name, "python", "-I", "-c", code).stdout.strip()

    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2.0)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait_until_ready(self, timeout_seconds: float = 30.0) -> "Container":
        def ready_or_gone() -> bool:
            return self.is_ready() or not self.is_running

        poll(ready_or_gone, f"{self.name} is ready", timeout_seconds)
        assert self.is_ready(), self.logs
        return self

    def is_healthy(self) -> bool:
        """The image's own health check, run once."""
        return run("podman", "healthcheck", "run", self.name, check=False).returncode == 0

    def stop(self, grace_seconds: int = 30) -> int:
        """As an orchestrator does it: the stop signal, then SIGKILL after the grace time. Returns the exit code."""
        run("podman", "stop", "-t", str(grace_seconds), self.name, timeout_seconds=grace_seconds + 30.0)
        return int(self.inspect()["State"]["ExitCode"])


@contextmanager
def run_container(
    image: str,
    *arguments: str,
    models: Path | None = None,
    cpus: float = 1.0,
    memory: str = "512m",
    options: Sequence[str] = ("--publish", f"127.0.0.1::{PORT}"),
) -> Iterator[Container]:
    """Run `image` hardened and under limits; `models` is mounted read-only at /models, `arguments` go to fovea."""
    name = f"fovea-test-{uuid.uuid4().hex[:8]}"
    limits = ("--cpus", str(cpus), "--memory", memory, "--pids-limit", "100")
    volume = ("--volume", f"{models}:/models:ro") if models else ()
    try:
        run("podman", "run", "--detach", "--name", name, *limits, *HARDENED, *volume, *options, image, *arguments)
        yield Container(name)
    finally:
        run("podman", "rm", "--force", "--time", "0", "--ignore", name)
