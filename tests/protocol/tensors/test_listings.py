"""Health, metadata, configuration and statistics of /v2; the listings of /v1."""

from typing import Any

import httpx2
import numpy as np
import pytest

from tests.support import bodies, oip


def get(client: httpx2.Client, path: str, status: int = 200) -> Any:
    answer = client.get(path)
    assert answer.status_code == status, answer.content
    return answer.json()


class TestHealth:
    def test_bodies_are_what_the_kserve_client_reads(self, client: httpx2.Client) -> None:
        assert get(client, "/v2/health/live") == {"live": True}
        assert get(client, "/v2/health/ready") == {"ready": True, "live": True}

    @pytest.mark.parametrize("place", ["colors", "colors/versions/1", "colors/versions/2"])
    def test_a_model_and_each_of_its_versions_is_ready(self, client: httpx2.Client, place: str) -> None:
        answer = get(client, f"/v2/models/{place}/ready")
        assert answer == {"name": "colors", "version": place[-1] if "versions" in place else "2", "ready": True}

    def test_a_model_that_did_not_load_is_not_ready_and_says_why(self, client: httpx2.Client) -> None:
        answer = client.get("/v2/models/broken/ready")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert "1/model.onnx" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_server_names_what_it_can_do_under_both_spellings(client: httpx2.Client, path: str) -> None:
    answer = get(client, path)
    assert answer["name"] == "fovea"
    assert {"classification", "binary_tensor_data", "statistics", "model_repository"} <= set(answer["extensions"])
    assert not [name for name in answer["extensions"] if "memory" in name or name in ("trace", "logging")]


@pytest.mark.parametrize("suffix", ["", "/ready", "/config", "/stats"])
@pytest.mark.parametrize(
    "place", ["nothing", "nothing/versions/1", "colors/versions/9", "colors/versions/01", "colors/versions/latest"]
)
def test_what_is_not_there_is_404(client: httpx2.Client, place: str, suffix: str) -> None:
    get(client, f"/v2/models/{place}{suffix}", 404)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/logging",
        "/v2/trace/setting",
        "/v2/models/colors/trace/setting",
        "/v2/systemsharedmemory/status",
        "/v2/cudasharedmemory/status",
        "/v2/models/colors/",
        "/v2/health",
        "/v2/models/colors/infer/",
    ],
)
def test_what_is_not_implemented_is_404(client: httpx2.Client, path: str) -> None:
    get(client, path, 404)


@pytest.mark.parametrize("path", ["/v2/models/colors/infer", "/v2/models/colors/versions/1/infer"])
def test_reading_an_infer_route_is_405(client: httpx2.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


class TestMetadata:
    def test_an_image_model_shows_its_tensor_and_images_in_properties(self, client: httpx2.Client) -> None:
        answer = get(client, "/v2/models/colors")
        assert answer["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": [-1, 3, -1, -1]}]
        assert answer["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
        assert answer["versions"] == ["1", "2"]
        assert answer["properties"]["labels_count"] == "3"
        assert "BYTES" in answer["properties"]["image_input"]
        assert all(isinstance(value, str) for value in answer["properties"].values())

    @pytest.mark.parametrize(
        ("model", "inputs"),
        [
            ("sum", [("a", "INT64", [-1, 2]), ("b", "INT64", [-1, 2])]),
            ("fixed", [("a", "FP32", [3, 2]), ("b", "FP32", [3, 2])]),
            ("half", [("a", "FP16", [-1, 2]), ("b", "FP16", [-1, 2])]),
            ("echo", [("text", "BYTES", [-1, 2])]),
        ],
    )
    def test_inputs_are_the_graphs(self, client: httpx2.Client, model: str, inputs: list[Any]) -> None:
        found = get(client, f"/v2/models/{model}")["inputs"]
        assert [(one["name"], one["datatype"], one["shape"]) for one in found] == inputs

    @pytest.mark.parametrize("model", ["colors", "sum", "both", "open", "fixed", "half", "echo", "imagenet", "digits"])
    def test_configuration_and_metadata_agree_as_perf_analyzer_needs(self, client: httpx2.Client, model: str) -> None:
        metadata, config = get(client, f"/v2/models/{model}"), get(client, f"/v2/models/{model}/config")
        rows = [-1] if config["max_batch_size"] else []
        for side, shown in (("input", "inputs"), ("output", "outputs")):
            assert [one["name"] for one in config[side]] == [one["name"] for one in metadata[shown]]
            assert [rows + one["dims"] for one in config[side]] == [one["shape"] for one in metadata[shown]]
            types = [one["data_type"].removeprefix("TYPE_").replace("STRING", "BYTES") for one in config[side]]
            assert types == [one["datatype"] for one in metadata[shown]]
        assert ("dynamic_batching" in config) == bool(rows)
        assert config["name"] == model
        assert config["platform"] == metadata["platform"] == "onnxruntime_onnx"

    def test_labels_are_named_where_they_are(self, client: httpx2.Client) -> None:
        assert get(client, "/v2/models/colors/config")["output"][0]["label_filename"] == "labels.txt"
        assert get(client, "/v2/models/sum/config")["output"][0]["label_filename"] == ""

    @pytest.mark.parametrize(
        ("model", "wanted"),
        [("imagenet", "FORMAT_NCHW"), ("colors", "FORMAT_NCHW"), ("digits", "FORMAT_NHWC"), ("sum", "FORMAT_NONE")],
    )
    def test_the_layout_of_images_is_told_as_image_clients_need(
        self, client: httpx2.Client, model: str, wanted: str
    ) -> None:
        found = get(client, f"/v2/models/{model}/config")["input"]
        assert {one["format"] for one in found} == {wanted}


class TestStatistics:
    def of(self, client: httpx2.Client, model: str, place: str = "") -> dict[str, Any]:
        (one,) = get(client, f"/v2/models/{model}{place}/stats")["model_stats"]
        return dict(one)

    def test_requests_rows_and_executions_are_counted(self, client: httpx2.Client) -> None:
        before = self.of(client, "both")
        rows = np.zeros((5, 4), np.float32)
        assert client.post("/v2/models/both/infer", content=oip.body(oip.tensor("x", rows))).status_code == 200
        client.post("/v2/models/both/infer", content=oip.body(oip.tensor("x", np.zeros((1, 3), np.float32))))
        after = self.of(client, "both", "/versions/1")
        assert after["inference_count"] - before["inference_count"] == 5
        assert after["execution_count"] > before["execution_count"]
        assert after["last_inference"] >= before["last_inference"]
        old, new = before["inference_stats"], after["inference_stats"]
        for stage in ("success", "queue", "compute_input", "compute_infer", "compute_output", "fail"):
            assert new[stage]["count"] - old[stage]["count"] == 1, stage
        assert new["compute_infer"]["ns"] > old["compute_infer"]["ns"]
        inside = sum(new[stage]["ns"] - old[stage]["ns"] for stage in ("queue", "compute_infer", "compute_output"))
        assert inside <= new["success"]["ns"] - old["success"]["ns"]

    def test_images_of_the_native_api_count_too(self, client: httpx2.Client) -> None:
        before = self.of(client, "colors", "/versions/2")["inference_count"]
        picture = bodies.plain_color("red")
        client.post("/api/v1/models/colors/classify", content=picture, headers={"content-type": bodies.PNG})
        assert self.of(client, "colors", "/versions/2")["inference_count"] == before + 1

    def test_all_versions_in_service_are_listed(self, client: httpx2.Client) -> None:
        found = [(one["name"], one["version"]) for one in get(client, "/v2/models/stats")["model_stats"]]
        assert {("colors", "1"), ("colors", "2"), ("both", "1"), ("imagenet", "1")} <= set(found)
        assert not [name for name, _ in found if name == "broken"]


class TestV1:
    def test_models_by_name(self, client: httpx2.Client) -> None:
        names = get(client, "/v1/models")["models"]
        assert {"colors", "digits", "imagenet"} <= set(names)
        assert "broken" not in names

    def test_a_model_has_the_keys_of_both_protocols(self, client: httpx2.Client) -> None:
        answer = get(client, "/v1/models/colors")
        assert (answer["name"], answer["ready"]) == ("colors", True)
        states = [(one["version"], one["state"]) for one in answer["model_version_status"]]
        assert states == [("2", "AVAILABLE"), ("1", "AVAILABLE")]
        assert answer["model_version_status"][0]["status"] == {"error_code": "OK", "error_message": ""}

    def test_a_model_that_did_not_load_is_503(self, client: httpx2.Client) -> None:
        answer = get(client, "/v1/models/broken", 503)
        assert answer["ready"] is False
        assert answer["error"]
        assert answer["model_version_status"][0]["status"]["error_code"] == "UNAVAILABLE"

    def test_an_unknown_model_is_404(self, client: httpx2.Client) -> None:
        assert get(client, "/v1/models/nothing", 404).keys() == {"error"}
