"""Traces of the real process, as a collector receives them."""

import itertools
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support import bodies
from tests.support.collector import Collector, attributes_of
from tests.support.server_process import MODEL_REPO, ServerProcess, poll, run_fovea

CLASSIFY = "/api/v1/models/digits/classify"
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("traced") / "model_repo"
    repository.mkdir()
    shutil.copytree(MODEL_REPO / "digits", repository / "digits")
    return repository


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def server(repository: Path, collector: Collector) -> Iterator[ServerProcess]:
    environment = SOON | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    with ServerProcess(repository, "--server.drain-delay-s", "0", environment=environment) as process:
        yield process.wait_until_ready()


def post(server: ServerProcess, image: bytes, headers: dict[str, str], path: str = CLASSIFY) -> httpx2.Response:
    return httpx2.post(server.url + path, content=image, headers={"content-type": bodies.PNG} | headers)


def parent(*, sampled: bool = True) -> tuple[str, str, dict[str, str]]:
    """A caller's trace id, span id, and the header that carries them."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, {"traceparent": f"00-{trace_id}-{span_id}-0{int(sampled)}"}


def test_a_request_is_a_span_below_its_callers_with_its_stages_below_it(
    server: ServerProcess, collector: Collector
) -> None:
    trace_id, span_id, headers = parent()
    before = time.time_ns()
    answer = post(server, bodies.drawn_digit(3), headers | {"x-request-id": "traced-1"})
    spans = poll(lambda: len(found := collector.of_trace(trace_id)) == 6 and found, "six spans")
    after = time.time_ns()  # a span ends when its answer is out, which the client may have before
    by_name = {span.name: span for span in spans}
    top = by_name["POST /api/v1/models/{model}/classify"]
    assert top.parent_span_id.hex() == span_id
    assert top.kind == top.SPAN_KIND_SERVER
    assert attributes_of(top) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/api/v1/models/{model}/classify",
        "url.path": CLASSIFY,
        "fovea.request_id": "traced-1",
        "fovea.model": "digits",
        "fovea.version": 1,
        "fovea.images": 1,
    }
    below = {name: by_name[name].parent_span_id for name in ("receive", "queue", "batch", "decode", "infer")}
    batch = by_name["batch"].span_id
    assert below == {
        "receive": top.span_id,
        "queue": top.span_id,
        "batch": top.span_id,
        "decode": batch,
        "infer": batch,
    }
    assert attributes_of(by_name["batch"]) == {"fovea.batch_size": 1}
    moments = [
        before,
        top.start_time_unix_nano,
        by_name["receive"].start_time_unix_nano,
        by_name["queue"].start_time_unix_nano,
        by_name["batch"].start_time_unix_nano,
        by_name["decode"].start_time_unix_nano,
        by_name["decode"].end_time_unix_nano,
        by_name["infer"].start_time_unix_nano,
        by_name["infer"].end_time_unix_nano,
        top.end_time_unix_nano,
        after,
    ]
    assert [b >= a - 1_000_000 for a, b in itertools.pairwise(moments)] == [True] * 10  # clocks: to 1 ms
    assert answer.headers["traceparent"] == f"00-{trace_id}-{top.span_id.hex()}-01"
    assert server.wait_for_event("request", request_id="traced-1")["traceparent"] == answer.headers["traceparent"]
    assert collector.resource["service.name"] == "fovea"


def test_every_image_has_its_own_queue_and_batch(server: ServerProcess, collector: Collector) -> None:
    trace_id, _, headers = parent()
    files = [("image", (f"{digit}.png", bodies.drawn_digit(digit), bodies.PNG)) for digit in (1, 2)]
    assert httpx2.post(server.url + CLASSIFY, files=files, headers=headers).status_code == 200
    spans = poll(lambda: len(found := collector.of_trace(trace_id)) == 10 and found, "ten spans")
    names = sorted(span.name for span in spans)
    assert names[1:] == ["batch", "batch", "decode", "decode", "infer", "infer", "queue", "queue", "receive"]


def test_a_refused_image_is_no_failure_of_the_service(server: ServerProcess, collector: Collector) -> None:
    trace_id, _, headers = parent()
    assert post(server, b"no image at all, whatever its type says", headers).status_code == 415
    spans = poll(lambda: len(found := collector.of_trace(trace_id)) == 2 and found, "two spans")
    top = next(span for span in spans if span.name != "receive")
    assert attributes_of(top)["http.response.status_code"] == 415
    assert attributes_of(top)["fovea.code"] == "unsupported_media_type"
    assert top.status.code == top.status.STATUS_CODE_UNSET


def test_a_caller_that_does_not_sample_is_followed_in_that(server: ServerProcess, collector: Collector) -> None:
    silent, _, headers = parent(sampled=False)
    answer = post(server, bodies.drawn_digit(3), headers)
    assert answer.headers["traceparent"].startswith(f"00-{silent}-")
    assert answer.headers["traceparent"].endswith("-00")
    heard, _, headers = parent()
    post(server, bodies.drawn_digit(3), headers)
    poll(lambda: len(collector.of_trace(heard)) == 6, "the spans of a later request")
    assert collector.of_trace(silent) == []


def test_listings_are_traced_and_probes_are_not(server: ServerProcess, collector: Collector) -> None:
    trace_id, _, headers = parent()
    assert "traceparent" not in httpx2.get(f"{server.url}/livez", headers=headers).headers
    assert httpx2.get(f"{server.url}/api/v1/models/digits", headers=headers).status_code == 200
    (span,) = poll(lambda: collector.of_trace(trace_id), "a span")
    assert span.name == "GET /api/v1/models/{model}"


def test_a_collector_that_is_down_costs_no_request_and_is_seen(repository: Path) -> None:
    environment = SOON | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_SERVICE_NAME": "other",
    }
    with ServerProcess(repository, "--server.drain-delay-s", "0", environment=environment) as server:
        server.wait_until_ready()
        for _ in range(20):
            assert post(server, bodies.drawn_digit(3), {}).status_code == 200

        def lost() -> float:
            lines = server.get("/metrics")[1].decode().splitlines()
            return next(float(line.split()[1]) for line in lines if line.startswith("fovea_trace_spans_lost "))

        poll(lambda: lost() > 0, "lost spans in the metric")
        server.wait_for_line(lambda line: line["logger"].startswith("opentelemetry"), "a log line about the export")
        assert server.stop() == 0
        assert server.stray == []


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: 'zipkin'"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc'",
        ),
    ],
)
def test_what_cannot_be_done_stops_the_start(repository: Path, environment: dict[str, str], named: str) -> None:
    ended = run_fovea("serve", "--model-repo", repository, "--server.port", "0", environment=environment)
    assert ended.returncode == 2
    assert named in ended.stderr


@pytest.mark.parametrize("environment", [{}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}])
def test_unasked_the_sdk_is_not_even_imported(environment: dict[str, str]) -> None:
    code = (
        "import sys, service.rest.run as run; run.from_environment(%r, '1'); print('opentelemetry.sdk' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code % environment], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
