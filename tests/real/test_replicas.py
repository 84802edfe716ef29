"""Two replicas behind nginx, as deploy/nginx sets it up: what a client sees while they restart, refuse or are gone."""

import asyncio
import itertools
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.real import nginx
from tests.real.nginx import NginxProcess, free_port
from tests.support import bodies, raw_http
from tests.support.answers import problem_of
from tests.support.raw_http import Connection, IncompleteAnswer, RawAnswer
from tests.support.server_process import MODEL_REPO, ServerProcess

pytestmark = pytest.mark.skipif(nginx.COMMAND is None, reason="no nginx: apt-get install nginx-light")

CLIENTS = 16
REQUESTS = 5_000


@dataclass
class Question:
    """One request and the label that its answer must begin with."""

    model: str
    media_type: str
    image: bytes
    label: str

    def data(self, request_id: str) -> bytes:
        headers = {"Content-Type": self.media_type, "X-Request-ID": request_id}
        return raw_http.request("POST", f"/api/v1/models/{self.model}/classify?top_k=1", headers, self.image)


@dataclass
class Ledger:
    """What all clients saw together."""

    answered: int = 0
    failed: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0
    enough: bool = False


def label_of(answer: RawAnswer) -> str:
    label: str = answer.json()["results"][0]["predictions"][0]["label"]
    return label


def questions(port: int) -> list[Question]:
    """Small digits and photographs of several sizes, with what a replica says of each when nothing else goes on."""
    small = [("digits", bodies.PNG, image) for image in bodies.different_digits(8)]
    crops = [("imagenet", bodies.JPEG, image) for image in bodies.different_crops(6)]
    large = [("imagenet", bodies.PNG, bodies.photograph("chelsea.png"))]
    asked = []
    for model, media_type, image in small + crops + large:
        question = Question(model, media_type, image, "")
        question.label = label_of(raw_http.exchange(port, question.data("reference")))
        asked.append(question)
    return asked


async def client(port: int, number: int, asked: list[Question], ledger: Ledger) -> None:
    """Closed loop: asks again as soon as it has its answer, on a kept connection; never asks the same twice."""
    connection = await Connection.open(port)
    for count, question in enumerate(itertools.cycle(asked[number % len(asked) :] + asked[: number % len(asked)])):
        if ledger.enough:
            break
        request_id = f"client-{number}-{count}"
        began = time.monotonic()
        try:
            answer = await connection.ask(question.data(request_id))
        except (OSError, IncompleteAnswer) as error:
            ledger.failed.append(f"{request_id}: {error!r}")
            await connection.close()
            connection = await Connection.open(port)
            continue
        ledger.slowest_seconds = max(ledger.slowest_seconds, time.monotonic() - began)
        if answer.status_code != 200:
            ledger.failed.append(f"{request_id}: {answer.status_code} {answer.content[:300]!r}")
        elif label_of(answer) != question.label or answer.headers["x-request-id"] != request_id:
            ledger.failed.append(f"{request_id}: the answer to another question: {answer.content[:300]!r}")
        else:
            ledger.answered += 1
        if answer.closes:
            await connection.close()
            connection = await Connection.open(port)
    await connection.close()


@pytest.fixture(scope="module")
def patient_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed models with patient queues: a machine that is busy otherwise is slow here, not overloaded."""
    root = tmp_path_factory.mktemp("patient") / "model_repo"
    shutil.copytree(MODEL_REPO, root, ignore=shutil.ignore_patterns("recipes"))
    for manifest in root.glob("*/model.toml"):
        text = manifest.read_text()
        table = "[batching]\n"
        text = text if table in text else f"{text}\n{table}"
        manifest.write_text(text.replace(table, f"{table}max_queue_wait_ms = 12000\n"))
    return root


def start(repository: Path, port: int, *settings: str) -> ServerProcess:
    return ServerProcess(repository, *settings, port=port)


@pytest.fixture
def ports() -> tuple[int, int]:
    return free_port(), free_port()


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.timeout(280)
async def test_rolling_restart_of_both_replicas_fails_no_request(
    patient_repository: Path, ports: tuple[int, int], processes: ExitStack, tmp_path: Path
) -> None:
    settings = ("--limits.timeout-ms", "14000", "--log.success-sample", "0")  # below nginx's read timeout of 15 s
    replicas = {port: processes.enter_context(start(patient_repository, port, *settings)) for port in ports}
    for replica in replicas.values():
        replica.wait_until_ready()
    proxy = processes.enter_context(NginxProcess(tmp_path, ports))
    asked = questions(ports[0])
    ledger = Ledger()
    clients = [asyncio.create_task(client(proxy.port, number, asked, ledger)) for number in range(CLIENTS)]

    async def reach(answers: int) -> None:
        give_up_at = time.monotonic() + 120
        while ledger.answered + len(ledger.failed) < answers:
            assert time.monotonic() < give_up_at, f"{ledger.answered} answers, {len(ledger.failed)} failures"
            await asyncio.sleep(0.05)

    marks: list[tuple[str, int, int]] = []  # (what, replica, answers so far)
    for number, port in enumerate(ports):
        await reach((number + 1) * REQUESTS // 4)
        marks.append(("stops", port, ledger.answered))
        assert await asyncio.to_thread(replicas[port].stop) == 0
        assert replicas[port].wait_for_event("drain_ended")["lost"] == 0
        replicas[port] = processes.enter_context(await asyncio.to_thread(start, patient_repository, port, *settings))
        await asyncio.to_thread(replicas[port].wait_until_ready)
        marks.append(("is back", port, ledger.answered))
    await reach(max(REQUESTS, ledger.answered + REQUESTS // 4))
    ledger.enough = True
    await asyncio.wait_for(asyncio.gather(*clients), 30.0)
    assert proxy.stop() == 0

    log = [line for line in proxy.access_log if line["request_id"].startswith("client-")]
    second_attempts = [line for line in log if "," in line["upstream"]]
    reasons = Counter(line["upstream_status"].split(",")[0] for line in second_attempts)
    print(
        f"\n{ledger.answered} answered, {len(ledger.failed)} failed, slowest {ledger.slowest_seconds:.2f} s; "
        f"second attempts: {len(second_attempts)} {dict(reasons)}; {marks}"
    )
    assert ledger.failed == []
    assert ledger.answered >= REQUESTS
    assert len(log) == ledger.answered  # one line a request, whatever the attempts
    answered_by = Counter(line["upstream"].rsplit(", ", 1)[-1] for line in log[-REQUESTS // 8 :])
    assert answered_by.keys() == {f"127.0.0.1:{port}" for port in ports}, "both replicas serve at the end"
    for port in ports:
        answered = [mark[2] for mark in marks if mark[1] == port]
        assert answered[1] - answered[0] > CLIENTS, "the load went on while a replica was away"


class TestOneReplicaOfTwo:
    """What a client sees when one replica is not there, or when there is none."""

    def test_killed_replica_costs_no_request(
        self, ports: tuple[int, int], processes: ExitStack, tmp_path: Path
    ) -> None:
        replicas = [processes.enter_context(start(MODEL_REPO, port)).wait_until_ready() for port in ports]
        proxy = processes.enter_context(NginxProcess(tmp_path, ports))
        digit = raw_http.request(
            "POST", "/api/v1/models/digits/classify", {"Content-Type": bodies.PNG}, bodies.drawn_digit(7)
        )
        before = [raw_http.exchange(proxy.port, digit).status_code for _ in range(20)]
        replicas[0].close()  # SIGKILL: no drain
        after = [raw_http.exchange(proxy.port, digit).status_code for _ in range(20)]
        assert set(before + after) == {200}

    def test_no_replica_at_all_is_a_503_to_come_back_after(self, ports: tuple[int, int], tmp_path: Path) -> None:
        with NginxProcess(tmp_path, ports) as proxy:
            answer = raw_http.exchange(proxy.port, raw_http.request("GET", "/api/v1/models"))
        problem_of(answer, 503, "no_replica")
        assert answer.headers["retry-after"] == "1"


class TestWhatThePassingChanges:
    """Headers, limits and refusals through nginx."""

    @pytest.fixture
    def pair(self, ports: tuple[int, int], processes: ExitStack, tmp_path: Path) -> tuple[NginxProcess, ServerProcess]:
        root = tmp_path / "models"
        manifest = (
            bodies.COLOR_MANIFEST + "[batching]\nmax_batch_size = 1\nmax_queue_size = 1\n[execution]\ninstances = 1\n"
        )
        bodies.write_model(root / "slow", bodies.slow_model(), manifest=manifest, labels=bodies.COLORS)
        replicas = [processes.enter_context(start(root, port)).wait_until_ready() for port in ports]
        return processes.enter_context(NginxProcess(tmp_path, ports)), replicas[0]

    async def test_overload_of_both_stays_the_services_own_503(self, pair: tuple[NginxProcess, ServerProcess]) -> None:
        """Were refusals to count as a replica's failure, nginx would answer 502 to everybody instead."""
        proxy, _ = pair
        red = raw_http.request(
            "POST", "/api/v1/models/slow/classify", {"Content-Type": bodies.PNG}, bodies.plain_color("red")
        )
        answers = await asyncio.gather(*(asyncio.to_thread(raw_http.exchange, proxy.port, red) for _ in range(60)))
        statuses = Counter(answer.status_code for answer in answers)
        assert statuses.keys() == {200, 503}, statuses
        for answer in answers:
            if answer.status_code == 503:
                problem_of(answer, 503, "overloaded")

    def test_request_id_and_trace_reach_the_replica(self, pair: tuple[NginxProcess, ServerProcess]) -> None:
        proxy, _ = pair
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        headers = {"X-Request-ID": "mine-1", "traceparent": trace}
        answer = raw_http.exchange(proxy.port, raw_http.request("GET", "/api/v1/models/none", headers))
        assert problem_of(answer, 404)["request_id"] == "mine-1"
        assert proxy.stop() == 0
        (line,) = proxy.access_log
        assert (line["request_id"], line["traceparent"], line["status"]) == ("mine-1", trace, 404)

    def test_malformed_request_id_is_replaced(self, pair: tuple[NginxProcess, ServerProcess]) -> None:
        proxy, _ = pair
        answer = raw_http.exchange(proxy.port, raw_http.request("GET", "/api/v1/models/none", {"X-Request-ID": 'a"b'}))
        request_id = problem_of(answer, 404)["request_id"]
        assert len(request_id) == 32
        assert proxy.stop() == 0
        assert [line["request_id"] for line in proxy.access_log] == [request_id]

    def test_body_above_every_limit_is_refused_in_the_services_manner(
        self, pair: tuple[NginxProcess, ServerProcess]
    ) -> None:
        proxy, _ = pair
        too_large = {"Content-Type": bodies.PNG, "Content-Length": str(32 * 1024 * 1024 + 1)}
        answer = raw_http.exchange(proxy.port, raw_http.request("POST", "/api/v1/models/slow/classify", too_large))
        problem_of(answer, 413, "payload_too_large")

    def test_body_that_only_the_service_refuses_gets_the_services_answer(
        self, pair: tuple[NginxProcess, ServerProcess]
    ) -> None:
        proxy, _ = pair
        body = bytes(20 * 1024 * 1024 + 1)
        answer = raw_http.exchange(
            proxy.port,
            raw_http.request("POST", "/api/v1/models/slow/classify", {"Content-Type": bodies.PNG}, body),
        )
        problem_of(answer, 413, "payload_too_large")

    def test_metrics_are_not_published(self, pair: tuple[NginxProcess, ServerProcess]) -> None:
        proxy, replica = pair
        assert replica.status_of("/metrics") == 200
        assert raw_http.exchange(proxy.port, raw_http.request("GET", "/metrics"), method="GET").status_code == 404


@pytest.mark.parametrize("target", ["http://fovea;", "http://fovea/;"], ids=["passed_on", "taken_off"])
def test_prefix_is_known_to_the_service_whatever_nginx_does_with_it(
    target: str, ports: tuple[int, int], processes: ExitStack, tmp_path: Path
) -> None:
    for port in ports:
        processes.enter_context(start(MODEL_REPO, port, "--server.root-path", "/vision")).wait_until_ready()
    in_its_place = {
        "location / {": "location /none/ {",
        "#location ": "location ",
        "#    proxy_pass http://fovea;": f"proxy_pass {target}",
        "#    return 404;": "return 404;",
        "#}": "}",
    }
    proxy = processes.enter_context(NginxProcess(tmp_path, ports, in_its_place))

    def get(path: str) -> RawAnswer:
        return raw_http.exchange(proxy.port, raw_http.request("GET", path), method="GET")

    listed = get("/vision/api/v1/models").json()
    assert {model["name"] for model in listed["models"]} >= {"digits", "imagenet"}
    assert "'/vision/openapi.json'" in get("/vision/docs").content.decode()
    document = get("/vision/openapi.json")
    assert document.status_code == 200
    assert json.loads(document.content)["servers"] == [{"url": "/vision"}]
    assert get("/vision/metrics").status_code == 404
    assert get("/api/v1/models").status_code == 404
