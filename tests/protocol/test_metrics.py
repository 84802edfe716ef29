"""`/metrics`: the promised names and labels, and that what happened is what was counted."""

import socket
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from tests.support import bodies, raw_http
from tests.support.scrape import Scrape
from tests.support.server_process import ServerProcess, poll

RED, GREEN, BLUE = (bodies.plain_color(name) for name in bodies.COLORS)
DURATIONS = {0.0001, 0.001, 0.01, 0.1, 1.0, 10.0}

PROMISED: dict[str, tuple[str, set[str]]] = {
    "fovea_requests": ("counter", {"model", "version", "protocol", "outcome"}),
    "fovea_request_duration_seconds": ("histogram", {"model", "protocol"}),
    "fovea_stage_duration_seconds": ("histogram", {"model", "stage"}),
    "fovea_images": ("counter", {"model", "version"}),
    "fovea_batch_size": ("histogram", {"model"}),
    "fovea_queue_entries": ("gauge", {"model"}),
    "fovea_inflight_requests": ("gauge", set()),
    "fovea_rejected": ("counter", {"model", "reason"}),
    "fovea_cancelled": ("counter", {"model", "phase"}),
    "fovea_images_rejected": ("counter", {"model", "reason"}),
    "fovea_model_state": ("gauge", {"model", "version", "state"}),
    "fovea_model_reloads": ("counter", {"model", "result"}),
    "fovea_predictions": ("counter", {"model", "version", "label"}),
    "fovea_prediction_confidence": ("histogram", {"model", "version"}),
    "fovea_build_info": ("gauge", {"version"}),
    "fovea_provider_info": ("gauge", {"model", "version", "provider"}),
}


def classify(client: httpx2.Client, model: str, *images: bytes, query: str = "") -> Any:
    body = bodies.json_body(images)
    return client.post(
        f"/api/v1/models/{model}/classify{query}", content=body, headers={"content-type": "application/json"}
    )


@pytest.fixture(scope="module")
def traffic(client: httpx2.Client, server: ServerProcess, scrape: Callable[[], Scrape]) -> Scrape:
    """A look at the metrics after at least one of everything has happened."""
    assert classify(client, "colors", RED).status_code == 200
    assert classify(client, "colors", RED[:-30]).status_code == 422
    assert classify(client, "broken", RED).status_code == 503
    assert classify(client, "slow", RED, query="?timeout_ms=20").status_code == 504
    leave_while_running(server, scrape)
    return scrape()


def leave_while_running(server: ServerProcess, scrape: Callable[[], Scrape]) -> None:
    """Ask the slow model for four images, half a second's work, and go as soon as that is known to be under way."""
    before = scrape()
    headers = {"Content-Type": "application/json"}
    request = raw_http.request("POST", "/api/v1/models/slow/classify", headers, bodies.json_body([RED] * 4))
    with socket.create_connection(("127.0.0.1", server.port), 10.0) as connection:
        connection.sendall(request)
        poll(lambda: scrape().total("fovea_inflight_requests") == 1, "the request is under way")
    poll(
        lambda: scrape().grown(before, "fovea_cancelled_total", model="slow") == 1, "the loss of its caller is counted"
    )


class TestNames:
    @pytest.mark.parametrize("name", PROMISED)
    def test_promised_metric_is_there_with_its_labels(self, traffic: Scrape, name: str) -> None:
        kind, labels = PROMISED[name]
        assert traffic.families[name] == kind
        sample = {"counter": "_total", "histogram": "_sum", "gauge": ""}[kind]
        assert traffic.label_names(name + sample) == {frozenset(labels)}

    def test_everything_else_of_ours_has_the_prefix(self, traffic: Scrape) -> None:
        foreign = {name for name in traffic.families if not name.startswith(("fovea_", "process_", "python_"))}
        assert foreign == set()

    def test_requests_are_told_apart_by_closed_sets(self, traffic: Scrape) -> None:
        name = "fovea_requests_total"
        assert traffic.label_values(name, "protocol") == {"native"}
        outcomes = {"ok", "client_error", "rejected", "timeout", "cancelled", "error"}
        assert (
            {"ok", "client_error", "rejected", "timeout", "cancelled"}
            <= traffic.label_values(name, "outcome")
            <= outcomes
        )

    def test_stages_are_the_promised_ones(self, traffic: Scrape) -> None:
        stages = traffic.label_values("fovea_stage_duration_seconds_count", "stage")
        assert stages == {"receive", "decode", "queue", "infer", "postprocess"}

    @pytest.mark.parametrize("name", ["fovea_request_duration_seconds", "fovea_stage_duration_seconds"])
    def test_durations_are_told_apart_from_a_tenth_of_a_millisecond_to_ten_seconds(
        self, traffic: Scrape, name: str
    ) -> None:
        buckets = {float(bound) for bound in traffic.label_values(f"{name}_bucket", "le")} - {float("inf")}
        assert (min(buckets), max(buckets)) == (0.0001, 10.0)
        assert buckets >= DURATIONS

    def test_states_are_those_of_the_index(self, traffic: Scrape) -> None:
        def states(model: str) -> dict[str, str]:
            return {
                dict(labels)["version"]: dict(labels)["state"]
                for (name, labels), value in traffic.samples.items()
                if name == "fovea_model_state" and dict(labels)["model"] == model and value == 1
            }

        assert states("colors") == {"1": "READY", "2": "READY", "3": "UNKNOWN"}
        assert states("damaged") == {"1": "UNAVAILABLE"}
        assert states("digits") == {"1": "READY"}

    def test_loads_are_counted_with_their_results(self, traffic: Scrape) -> None:
        assert traffic.total("fovea_model_reloads_total", model="colors", result="success") == 2
        assert traffic.total("fovea_model_reloads_total", model="damaged", result="failure") == 1

    def test_provider_and_build_are_named(self, traffic: Scrape, client: httpx2.Client) -> None:
        assert traffic.total("fovea_provider_info", model="digits", version="1", provider="cpu") == 1
        assert traffic.label_values("fovea_build_info", "version") == {client.get("/").json()["version"]}

    def test_content_type_is_the_one_prometheus_asks_for(self, client: httpx2.Client) -> None:
        assert client.get("/metrics").headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


class TestCounts:
    def test_every_outcome_is_counted_once_and_nothing_else_moves(
        self, client: httpx2.Client, server: ServerProcess, scrape: Callable[[], Scrape]
    ) -> None:
        before = scrape()
        for _ in range(3):
            assert classify(client, "colors", RED).status_code == 200
        for _ in range(2):
            assert classify(client, "colors", b"no image").status_code == 415
        assert classify(client, "colors", RED, query="?top_k=3&threshold=x").status_code == 422
        assert (
            client.post(
                "/api/v1/models/colors/classify", content=b"{", headers={"content-type": "application/json"}
            ).status_code
            == 400
        )
        assert classify(client, "tensors", RED).status_code == 409
        assert classify(client, "broken", RED).status_code == 503
        assert classify(client, "nothing", RED).status_code == 404
        assert classify(client, "slow", RED, query="?timeout_ms=20").status_code == 504
        leave_while_running(server, scrape)
        after = scrape()

        def line(model: str, version: str, outcome: str) -> tuple[tuple[str, str], ...]:
            return (("model", model), ("outcome", outcome), ("protocol", "native"), ("version", version))

        changes = after.changes(before, "fovea_requests_total")
        refused = changes.pop(line("colors", "_other", "client_error"), 0)
        assert changes == {
            line("colors", "2", "ok"): 3,
            line("colors", "2", "client_error"): 2,
            line("tensors", "1", "client_error"): 1,
            line("broken", "_other", "rejected"): 1,
            line("_other", "_other", "client_error"): 1,
            line("slow", "1", "timeout"): 1,
            line("slow", "1", "cancelled"): 1,
        }
        assert refused in (1, 2)  # a wrong query parameter may be refused before the request is one of the model's
        assert (
            after.changes(before, "fovea_request_duration_seconds_count")[(("model", "colors"), ("protocol", "native"))]
            == 5 + refused
        )
        assert after.changes(before, "fovea_rejected_total") == {(("model", "broken"), ("reason", "not_ready")): 1}
        assert after.changes(before, "fovea_images_rejected_total") == {
            (("model", "colors"), ("reason", "unsupported_media_type")): 2
        }
        assert after.total("fovea_inflight_requests") == 0

    def test_images_predictions_and_batches_are_counted_by_the_image(
        self, client: httpx2.Client, scrape: Callable[[], Scrape]
    ) -> None:
        before = scrape()
        assert classify(client, "colors", RED, GREEN, RED, b"no image", RED[:-30]).status_code == 200
        after = scrape()
        version = (("model", "colors"), ("version", "2"))
        assert after.changes(before, "fovea_images_total") == {version: 3}
        assert after.changes(before, "fovea_prediction_confidence_count") == {version: 3}
        assert after.grown(before, "fovea_predictions_total", model="colors", label="rouge") == 2
        assert after.grown(before, "fovea_predictions_total", model="colors", label="vert") == 1
        assert after.grown(before, "fovea_predictions_total", model="colors") == 3
        assert after.grown(before, "fovea_images_rejected_total", reason="unsupported_media_type") == 1
        assert after.grown(before, "fovea_images_rejected_total", reason="invalid_image") == 1
        assert after.grown(before, "fovea_requests_total") == 1
        for stage in ("decode", "queue", "infer"):
            assert after.grown(before, "fovea_stage_duration_seconds_count", model="colors", stage=stage) == 3

    def test_batch_sizes_add_up_to_the_images(self, client: httpx2.Client, scrape: Callable[[], Scrape]) -> None:
        before = scrape()
        assert classify(client, "colors", *[RED] * 16).status_code == 200
        after = scrape()
        assert after.grown(before, "fovea_batch_size_sum", model="colors") == 16
        assert 2 <= after.grown(before, "fovea_batch_size_count", model="colors") < 16

    def test_infer_time_is_about_what_the_answers_say(
        self, client: httpx2.Client, scrape: Callable[[], Scrape]
    ) -> None:
        before = scrape()
        told = classify(client, "slow", RED).json()["timings_ms"]
        after = scrape()
        counted = after.grown(before, "fovea_stage_duration_seconds_sum", model="slow", stage="infer")
        assert counted == pytest.approx(told["infer"] / 1000, abs=0.001)
        whole = after.grown(before, "fovea_request_duration_seconds_sum", model="slow")
        assert counted < whole < told["total"] / 1000 + 0.25

    def test_unknown_names_make_no_series(self, client: httpx2.Client, scrape: Callable[[], Scrape]) -> None:
        classify(client, "nothing-0", RED)
        client.post("/api/v1/models/colors/versions/77/classify", content=RED, headers={"content-type": bodies.PNG})
        before = scrape()
        for index in range(1, 50):
            assert classify(client, f"nothing-{index}", RED).status_code == 404
            path = f"/api/v1/models/colors/versions/{1000 + index}/classify"
            assert client.post(path, content=RED, headers={"content-type": bodies.PNG}).status_code == 404
        after = scrape()
        assert after.samples.keys() == before.samples.keys()
        assert after.grown(before, "fovea_requests_total", model="_other", outcome="client_error") == 49
        assert after.grown(before, "fovea_requests_total", model="colors", outcome="client_error") == 49

    def test_probes_and_documents_are_not_traffic(self, client: httpx2.Client, scrape: Callable[[], Scrape]) -> None:
        before = scrape()
        for path in ("/livez", "/readyz", "/startupz", "/docs", "/openapi.json", "/", "/api/v1/models", "/nowhere"):
            client.get(path)
        assert scrape().grown(before, "fovea_requests_total") == 0

    def test_most_labels_of_a_large_model_are_counted_together(
        self, client: httpx2.Client, scrape: Callable[[], Scrape]
    ) -> None:
        before = scrape()
        crops = bodies.different_crops(90)
        for start in range(0, 90, 15):
            assert classify(client, "imagenet", *crops[start : start + 15]).status_code == 200
        after = scrape()
        assert after.grown(before, "fovea_predictions_total", model="imagenet") == 90
        labels = [
            dict(have)["label"]
            for name, have in after.samples
            if name == "fovea_predictions_total" and ("model", "imagenet") in have
        ]
        assert "_other" in labels
        assert len(labels) <= 51
