"""The service watched by a real Prometheus and a real Alertmanager, with our rules and our dashboard.

Time is compressed: every window, `for` and interval of the rules is divided by SPEED_UP, and so is the scrape interval;
thresholds stay. An hour of the rules is three minutes here. Prometheus sends alerts, Alertmanager groups them, and a
webhook of this test notes which arrive.
"""

import asyncio
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.support import bodies, raw_http, tiny_models
from tests.support.server_process import MODEL_REPO, PROJECT, ServerProcess, poll, run_fovea

MONITORING = PROJECT / "deploy" / "monitoring"
SCHEMA = PROJECT.parent / "shared" / "schemas" / "grafana_dashboard.schema.json"
SPEED_UP = 20
HEALTHY_SECONDS = 3600 / SPEED_UP
WITHIN_SECONDS = 120 / SPEED_UP  # two minutes of the rules
# What is not compressed: the machine's own pace. Loading a version, and a scheduler with more to do than cores.
OWN_PACE_SECONDS = 15.0
_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("prometheus-alertmanager") is None,
        reason="needs the Debian packages prometheus and prometheus-alertmanager",
    ),
]


# Configuration, compressed


def compressed(text: str) -> str:
    """Every duration of a rules or configuration file divided by SPEED_UP, in milliseconds."""

    def shorter(match: re.Match[str]) -> str:
        return f"{match[1]}{round(int(match[2]) * _UNITS_MS[match[3]] / SPEED_UP)}ms"

    setting = r"(?m)(\[|^\s*(?:for|interval|scrape_interval|evaluation_interval|group_\w+): )(\d+)(ms|s|m|h|d)\b"
    return re.sub(setting, shorter, text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


# What is watched


def convolutions(count: int) -> onnx.ModelProto:
    """A network whose cost is `count` convolutions of 38 million multiplications each, and grows with the batch."""
    random = np.random.default_rng(count)
    nodes = [helper.make_node("Conv", ["image", "first"], ["x0"], pads=[1, 1, 1, 1])]
    constants = {"first": random.normal(0, 0.1, (32, 3, 3, 3)).astype(np.float32)}
    for place in range(count):
        constants[f"w{place}"] = random.normal(0, 0.05, (32, 32, 3, 3)).astype(np.float32)
        nodes.append(helper.make_node("Conv", [f"x{place}", f"w{place}"], [f"c{place}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Tanh", [f"c{place}"], [f"x{place + 1}"]))
    constants["last"] = random.normal(0, 1, (32, 3)).astype(np.float32)
    nodes += [
        helper.make_node("GlobalAveragePool", [f"x{count}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "last"], ["scores"]),
    ]
    size = 64
    return tiny_models.graph(
        nodes, {"image": ("float32", ("N", 3, size, size))}, {"scores": ("float32", ("N", 3))}, constants
    )


FAST, BUSY, SLOW = 2, 12, 96  # convolutions: on a core some 5, 30 and 240 ms for an image
WINDOW_IMAGES = 200  # of drift, the least there is
ASKED = tiny_models.picture("red", 64, 64)
THREADS = 2  # however many cores there are: what `overload` sends must be too much


def publish(folder: Path, version: int, model: bytes) -> None:
    """A new version, complete when it appears."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as aside:
        (Path(aside) / "new").mkdir()
        (Path(aside) / "new" / "model.onnx").write_bytes(model)
        (Path(aside) / "new").rename(folder / str(version))


def make_repository(folder: Path) -> Path:
    """Ours, and for the faults `busy` to be overloaded, `narrow` with a short queue, `growing` to get slow."""
    for name in ("imagenet", "digits", "fashion"):
        shutil.copytree(MODEL_REPO / name, folder / name)
    queue = "[batching]\nmax_queue_size = {}\nmax_queue_wait_ms = {}\n"
    for name, cost, length, wait in (("busy", BUSY, 256, 300), ("narrow", FAST, 4, 1000), ("growing", FAST, 256, 1000)):
        manifest = tiny_models.UNIT + queue.format(length, wait)
        tiny_models.write_model(folder, name, convolutions(cost), manifest=manifest)
    add_rolled_out(folder)
    return folder


def add_rolled_out(folder: Path) -> None:
    """`rolled` has a canary and a shadow, which are the same network, and a reference of what it is asked."""
    table = "[rollout]\nstable = 1\ncanary = { version = 2, percent = 50 }\nshadow = { version = 3, percent = 100 }\n"
    network = convolutions(FAST).SerializeToString()
    model = tiny_models.write_model(folder, "rolled", network, manifest=tiny_models.UNIT + table)
    for version in (2, 3):
        publish(model, version, network)
    with tempfile.TemporaryDirectory() as pictures:
        for place in range(2 * WINDOW_IMAGES):
            (Path(pictures) / f"{place}.png").write_bytes(ASKED)
        done = run_fovea("check", "--write-reference", pictures, "--model", "rolled", "--model-repo", folder)
    assert done.returncode == 0, done.stdout + done.stderr


# Traffic


def classify(model: str, body: bytes, content_type: str, query: str = "") -> bytes:
    return raw_http.request("POST", f"/api/v1/models/{model}/classify{query}", {"Content-Type": content_type}, body)


class Traffic:
    """Open-loop requests from a thread of its own: each stream sends at its rate, whatever comes back."""

    def __init__(self, port: int) -> None:
        self.statuses: dict[int, int] = {}
        self._port = port
        self._idle: list[raw_http.Connection] = []
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: set[Future[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="traffic", daemon=True)
        self._thread.start()

    @contextmanager
    def stream(self, rate: float, requests: list[bytes]) -> Iterator[None]:
        """`rate` requests a second until the block ends."""
        future = self.start(rate, requests)
        try:
            yield
        finally:
            self._streams.discard(future)
            future.cancel()

    def start(self, rate: float, requests: list[bytes], *, leave: bool = False) -> "Future[None]":
        future = asyncio.run_coroutine_threadsafe(self._send(rate, requests, leave), self._loop)
        self._streams.add(future)
        return future

    def close(self) -> None:
        for stream in self._streams:
            stream.cancel()
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _send(self, rate: float, requests: list[bytes], leave: bool) -> None:
        next_at = self._loop.time()
        for data in cycle(requests):
            task = self._loop.create_task(self._leave(data) if leave else self._ask(data))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            next_at += 1 / rate
            await asyncio.sleep(max(0.0, next_at - self._loop.time()))

    async def _ask(self, data: bytes) -> None:
        with suppress(OSError, raw_http.IncompleteAnswer):
            connection = self._idle.pop() if self._idle else await raw_http.Connection.open(self._port)
            try:
                answer = await connection.ask(data)
            except (OSError, raw_http.IncompleteAnswer):
                await connection.close()
                raise
            self.statuses[answer.status_code] = self.statuses.get(answer.status_code, 0) + 1
            self._idle.append(connection)

    async def _leave(self, data: bytes) -> None:
        """Ask and go away without waiting."""
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                writer.write(data)
                await writer.drain()
                taken: socket.socket = writer.get_extra_info("socket")
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            finally:
                writer.close()

    async def _finish(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._idle:
            await connection.close()


def healthy_traffic(traffic: Traffic) -> None:
    """What a service without any fault sees: photographs, digits, some bad images and deadlines, callers who leave."""
    photos = [classify("imagenet", photo, bodies.JPEG) for photo in bodies.different_crops(8)]
    large = classify("imagenet", bodies.photograph("retina.jpg"), bodies.JPEG)
    digits = bodies.different_digits(9)
    bad = [classify("digits", b"no image at all", bodies.PNG), classify("digits", digits[0][:-40], bodies.PNG)]
    several = classify("digits", bodies.json_body(digits), "application/json")
    traffic.start(8, [*photos, large])
    traffic.start(12, [classify("digits", digit, bodies.PNG) for digit in digits] + [several])
    traffic.start(1, bad)
    traffic.start(8, [classify("fashion", digit, bodies.PNG) for digit in digits])
    for name in ("busy", "narrow", "growing"):
        traffic.start(4, [classify(name, ASKED, bodies.PNG)])
    traffic.start(10, [classify("rolled", ASKED, bodies.PNG)])
    traffic.start(0.1, [classify("imagenet", bodies.photograph("retina.jpg"), bodies.JPEG, "?timeout_ms=1")])
    traffic.start(0.3, [photos[0]], leave=True)
    traffic.start(0.2, [classify("no-such-model", digits[0], bodies.PNG)])


# Who watches


class Webhook:
    """Where Alertmanager sends to. `firing` holds (alertname, when) of every alert that arrived firing."""

    def __init__(self) -> None:
        self.firing: list[tuple[str, float]] = []
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                now = time.monotonic()
                webhook.firing += [
                    (alert["labels"]["alertname"], now) for alert in message["alerts"] if alert["status"] == "firing"
                ]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Not on the test's stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, name="webhook", daemon=True).start()

    def names_since(self, moment: float) -> set[str]:
        return {name for name, at in list(self.firing) if at >= moment}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Daemon:
    """A process of somebody else's, ended by its id."""

    def __init__(self, folder: Path, ready_url: str, *command: str) -> None:
        self._log = (folder / f"{command[0]}.log").open("wb")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT, cwd=folder)

        def ready() -> bool:
            assert self._process.poll() is None, (folder / f"{command[0]}.log").read_text()
            try:
                with urllib.request.urlopen(ready_url, timeout=2) as answer:
                    return bool(answer.status == 200)
            except (OSError, http.client.HTTPException):
                return False

        try:
            poll(ready, f"{command[0]} is ready")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        finally:
            self._log.close()


class Stack:
    """Two replicas, Prometheus, Alertmanager and the webhook."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = make_repository(folder / "models")
        poll_interval = 5 / SPEED_UP
        self._settings = (
            *("--repository.poll-interval-s", f"{poll_interval}"),
            *("--execution.threads", f"{THREADS}"),
            *("--log.success-sample", "0"),
            *("--drift.window-images", f"{WINDOW_IMAGES}"),
        )
        self.replica = ServerProcess(self.repository, *self._settings).wait_until_ready()
        self.other = ServerProcess(self.repository, *self._settings).wait_until_ready()
        self.webhook = Webhook()
        self._daemons = [self._alertmanager(), self._prometheus()]
        self.traffic = Traffic(self.replica.port)

    def _alertmanager(self) -> Daemon:
        port = free_port()
        self._alertmanager_address = f"127.0.0.1:{port}"
        config = compressed((MONITORING / "alertmanager.yml").read_text())
        receiver = rf"\1\n    webhook_configs: [{{url: '{self.webhook.url}'}}]"
        config, receivers = re.subn(r"(?m)^(  - name: \w+).*$", receiver, config)
        assert receivers == 2
        (self.folder / "alertmanager.yml").write_text(config)
        return Daemon(
            self.folder,
            f"http://{self._alertmanager_address}/-/ready",
            "prometheus-alertmanager",
            "--config.file=alertmanager.yml",
            f"--storage.path={self.folder / 'alertmanager'}",
            f"--web.listen-address={self._alertmanager_address}",
            "--cluster.listen-address=",
        )

    def _prometheus(self) -> Daemon:
        address = f"127.0.0.1:{free_port()}"
        self.prometheus = f"http://{address}"
        (self.folder / "rules.yml").write_text(compressed((MONITORING / "rules.yml").read_text()))
        config = compressed((MONITORING / "prometheus.yml").read_text())
        for name, target in {
            "fovea:8000": f'127.0.0.1:{self.replica.port}", "127.0.0.1:{self.other.port}',
            "alertmanager:9093": self._alertmanager_address,
        }.items():
            assert config.count(f'"{name}"') == 1
            config = config.replace(name, target)
        config = config[: config.index("  # GPU figures")]  # there is no dcgm-exporter to be found here
        (self.folder / "prometheus.yml").write_text(config)
        return Daemon(
            self.folder,
            f"{self.prometheus}/-/ready",
            "prometheus",
            "--config.file=prometheus.yml",
            f"--storage.tsdb.path={self.folder / 'prometheus'}",
            f"--web.listen-address={address}",
            "--log.level=warn",
        )

    def restart_other(self) -> None:
        port = self.other.port
        self.other.close()
        self.other = ServerProcess(self.repository, *self._settings, port=port).wait_until_ready()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus answers now. Raises AssertionError with its reason where it is an error."""
        url = f"{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            result: list[dict[str, Any]] = get_json(url)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from None
        return result

    def rules(self) -> list[dict[str, Any]]:
        groups = get_json(f"{self.prometheus}/api/v1/rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def alerts(self) -> set[str]:
        """Names of what is pending or firing in Prometheus."""
        return {rule["name"] for rule in self.rules() if rule["type"] == "alerting" and rule["state"] != "inactive"}

    def firing(self) -> set[str]:
        return {rule["name"] for rule in self.rules() if rule["type"] == "alerting" and rule["state"] == "firing"}

    def knows_what_is_usual(self) -> bool:
        """Whether each model has so many healthy figures that a fault's do not move their median."""
        figures = self.query(
            "min_over_time(fovea:infer_seconds_per_image:mean1m[1h]) and "
            "count_over_time(fovea:infer_seconds_per_image:mean1m[1h]) >= 30"
        )
        return len(figures) == len(list(self.repository.glob("*/model.toml")))

    def close(self) -> None:
        self.traffic.close()
        for daemon in reversed(self._daemons):
            daemon.close()
        self.webhook.close()
        self.other.close()
        self.replica.close()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("monitoring"))
    try:
        poll(lambda: len(stack.query('up{job="fovea"} == 1')) == 2, "both replicas are scraped")
        poll(lambda: not stack.alerts(), "what looked absent at the start is there")
        healthy_traffic(stack.traffic)
        poll(stack.knows_what_is_usual, "there is a history to compare with", 60, every_seconds=0.2)
        yield stack
    finally:
        stack.close()


def watch(stack: Stack, seconds: float) -> set[str]:
    """Every alert that fired in Prometheus or arrived during so much healthy traffic."""
    started_at = time.monotonic()
    fired: set[str] = set()
    while time.monotonic() < started_at + seconds:
        fired |= stack.firing()
        time.sleep(0.5)  # the pace of looking, not a wait for anything
    return fired | stack.webhook.names_since(started_at)


# The dashboard


def panels() -> list[dict[str, Any]]:
    dashboard: dict[str, Any] = json.loads((MONITORING / "grafana" / "dashboard.json").read_text())
    found: list[dict[str, Any]] = dashboard["panels"]
    return found


def filled_in(expression: str) -> str:
    """With the variables as Grafana fills them in for "All", and a window of five scrapes."""
    window = f"{5 * 15_000 // SPEED_UP}ms"
    for name, value in {"$job": "fovea.*", "$instance": ".*", "$model": ".*", "$__rate_interval": window}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


# Tests, in any order: each fault leaves the stack as healthy as it found it


class TestMonitoring:
    def test_a_healthy_hour_fires_nothing_and_every_panel_and_rule_has_data(self, stack: Stack) -> None:
        assert watch(stack, HEALTHY_SECONDS) == set()
        assert stack.traffic.statuses.get(200, 0) > 20 * HEALTHY_SECONDS
        assert {422, 404, 504} <= stack.traffic.statuses.keys()
        assert stack.traffic.statuses.keys() <= {200, 404, 415, 422, 504}
        bad = [rule for rule in stack.rules() if rule["health"] != "ok"]
        assert bad == []
        conditions = {"fovea:slow_model:seconds_per_image"}  # only there while something is wrong
        for rule in stack.rules():
            if rule["type"] == "recording" and rule["name"] not in conditions:
                assert stack.query(rule["name"]), f"{rule['name']} is empty"
        empty = []
        for panel in panels():
            for target in panel.get("targets", []):
                if not stack.query(filled_in(target["expr"])) and not target["expr"].startswith("DCGM_"):
                    empty.append((panel["title"], target["expr"]))
        assert empty == []

    @pytest.mark.parametrize(
        "alert",
        [
            "FoveaDown",
            "FoveaModelVersionFailed",
            "FoveaOverloaded",
            "FoveaModelSlow",
            "FoveaQueueFull",
            "FoveaClientErrors",
        ],
    )
    def test_each_fault_fires_exactly_its_own_alert(self, stack: Stack, alert: str) -> None:
        poll(lambda: not stack.alerts(), "nothing is wrong before", 60, every_seconds=0.2)
        injected_at = time.monotonic()
        with FAULTS[alert](stack):
            poll(
                lambda: alert in stack.webhook.names_since(injected_at),
                f"{alert} arrives; {stack.alerts()} by now",
                WITHIN_SECONDS + OWN_PACE_SECONDS,
                every_seconds=0.05,
            )
            seconds = time.monotonic() - injected_at
            watch(stack, WITHIN_SECONDS)  # the others have the same time to arrive
        sys.stderr.write(f"{alert} arrived {seconds:.1f} s after the fault\n")
        poll(lambda: not stack.alerts(), "all is well after", 60, every_seconds=0.2)
        watch(stack, WITHIN_SECONDS / 2)  # nor does it leave anything behind
        assert stack.webhook.names_since(injected_at) == {alert}

    def test_after_the_faults_healthy_traffic_fires_nothing(self, stack: Stack) -> None:
        assert watch(stack, HEALTHY_SECONDS / 12) == set()


# Faults: each lasts as long as its block


@contextmanager
def stopped_replica(stack: Stack) -> Iterator[None]:
    os.kill(stack.other.pid, signal.SIGKILL)
    try:
        yield
    finally:
        stack.restart_other()


@contextmanager
def bad_model_version(stack: Stack) -> Iterator[None]:
    publish(stack.repository / "digits", 2, b"not a network")
    try:
        yield
    finally:
        shutil.rmtree(stack.repository / "digits" / "2")


@contextmanager
def overload(stack: Stack) -> Iterator[None]:
    """More than two threads answer of this model: refused for the wait, which its manifest bounds."""
    with stack.traffic.stream(500, [classify("busy", tiny_models.picture("red", 64, 64), bodies.PNG)]):
        yield


@contextmanager
def slow_model(stack: Stack) -> Iterator[None]:
    """A new version that costs much more, until a newer one is as it was."""
    publish(stack.repository / "growing", 2, convolutions(SLOW).SerializeToString())
    try:
        yield
    finally:
        publish(stack.repository / "growing", 3, convolutions(FAST).SerializeToString())


@contextmanager
def full_queue(stack: Stack) -> Iterator[None]:
    """Sixteen images at once into a queue of four, again and again."""
    images = [tiny_models.picture(color, 64, 64) for color in ("red", "green", "blue", "white")] * 4
    with stack.traffic.stream(4, [classify("narrow", bodies.json_body(images), "application/json")]):
        yield


@contextmanager
def client_errors(stack: Stack) -> Iterator[None]:
    with stack.traffic.stream(40, [classify("digits", tiny_models.damaged_picture(), bodies.PNG)]):
        yield


FAULTS = {
    "FoveaDown": stopped_replica,
    "FoveaModelVersionFailed": bad_model_version,
    "FoveaOverloaded": overload,
    "FoveaModelSlow": slow_model,
    "FoveaQueueFull": full_queue,
    "FoveaClientErrors": client_errors,
}


# The files, by their own tools


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "--lint-fatal", "rules.yml")


def test_promtool_runs_the_unit_tests_of_the_rules() -> None:
    promtool("test", "rules", "rules_test.yml")


def test_amtool_accepts_the_configuration_of_alertmanager() -> None:
    done = subprocess.run(
        ["amtool", "check-config", str(MONITORING / "alertmanager.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_is_what_its_generator_makes() -> None:
    if importlib.util.find_spec("grafana_foundation_sdk") is None:
        pytest.skip("needs grafana-foundation-sdk")
    write = "import sys, dashboard; sys.stdout.write(dashboard.render())"
    # a process of its own: the package warns at import, and warnings are errors here
    done = subprocess.run([sys.executable, "-c", write], cwd=MONITORING, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (MONITORING / "grafana" / "dashboard.json").read_text(encoding="utf-8"), (
        "run `make dashboard`"
    )


def test_dashboard_has_the_schema_of_grafana() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")
    if not SCHEMA.exists():
        pytest.skip("needs Grafana's dashboard schema")
    jsonschema.validate(
        json.loads((MONITORING / "grafana" / "dashboard.json").read_text()), json.loads(SCHEMA.read_text())
    )
