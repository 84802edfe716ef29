"""The classify routes: three forms of one question, its parameters, several images, versions, names."""

import json
from typing import Any

import httpx2
import pytest

from tests.support import bodies
from tests.support.answers import assert_same_predictions, predictions_of, problem_of, results_of
from tests.support.server_process import ServerProcess

DIGITS = "/api/v1/models/digits/classify"
COLORS = "/api/v1/models/colors/classify"
IMAGENET = "/api/v1/models/imagenet/classify"

SEVEN = bodies.drawn_digit(7)
RED, GREEN, BLUE = (bodies.plain_color(name) for name in bodies.COLORS)


def post_raw(client: httpx2.Client, path: str, image: bytes, media_type: str = bodies.PNG, **query: Any) -> Any:
    return client.post(path, content=image, headers={"content-type": media_type}, params=query)


def post_json(client: httpx2.Client, path: str, value: Any, **query: Any) -> Any:
    return client.post(
        path, content=json.dumps(value).encode(), headers={"content-type": "application/json"}, params=query
    )


def post_parts(client: httpx2.Client, path: str, *parts: bodies.Part, **query: Any) -> Any:
    body = bodies.multipart(parts)
    return client.post(path, content=body, headers={"content-type": bodies.MULTIPART}, params=query)


def in_base64(*images: bytes, **keys: Any) -> dict[str, Any]:
    return {"images": [{"b64": bodies.base64_text(image)} for image in images], **keys}


class TestForms:
    def test_raw_multipart_and_json_give_the_same_scores(self, client: httpx2.Client) -> None:
        photograph = bodies.photograph("coffee.png")
        raw = predictions_of(post_raw(client, IMAGENET, photograph))
        parts = predictions_of(post_parts(client, IMAGENET, bodies.image_part(photograph, media_type=bodies.PNG)))
        base64 = predictions_of(post_json(client, IMAGENET, in_base64(photograph)))
        assert_same_predictions(parts, raw, tolerance=1e-5)
        assert_same_predictions(base64, raw, tolerance=1e-5)

    @pytest.mark.parametrize(("kind", "media_type"), [("PNG", bodies.PNG), ("WEBP", bodies.WEBP)])
    def test_lossless_formats_give_the_same_scores(self, client: httpx2.Client, kind: str, media_type: str) -> None:
        image = bodies.noise(40, 40, channels=1)
        png = predictions_of(post_raw(client, DIGITS, bodies.encoded(image)))
        options = {"lossless": True} if kind == "WEBP" else {}
        other = predictions_of(post_raw(client, DIGITS, bodies.encoded(image, kind, **options), media_type))
        assert_same_predictions(other, png, tolerance=1e-5)

    def test_jpeg_is_answered_with_its_format_and_size(self, client: httpx2.Client) -> None:
        answer = post_raw(client, DIGITS, bodies.encoded(bodies.noise(33, 21), "JPEG"), bodies.JPEG)
        assert results_of(answer)[0]["image"] == {"format": "jpeg", "width": 33, "height": 21}

    def test_answer_names_model_version_request_and_times(self, client: httpx2.Client) -> None:
        answer = post_raw(client, DIGITS, SEVEN)
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        assert body.keys() == {"model", "version", "request_id", "results", "timings_ms"}
        assert (body["model"], body["version"]) == ("digits", "1")
        assert body["request_id"] == answer.headers["x-request-id"]
        assert body["timings_ms"].keys() == {"decode", "queue", "infer", "total"}
        assert body["timings_ms"]["total"] >= body["timings_ms"]["infer"] > 0

    def test_media_type_is_read_without_regard_to_case_and_parameters(self, client: httpx2.Client) -> None:
        assert predictions_of(post_raw(client, DIGITS, SEVEN, "Image/PNG; q=1"))[0]["label"] == "7"

    def test_part_without_a_content_type_is_recognised_by_its_bytes(self, client: httpx2.Client) -> None:
        assert predictions_of(post_parts(client, DIGITS, bodies.image_part(SEVEN)))[0]["label"] == "7"

    def test_parts_as_an_http_library_sends_them_are_read(self, client: httpx2.Client) -> None:
        files = [("image", ("a.png", SEVEN, "image/png")), ("image", ("b.png", bodies.drawn_digit(3), "image/png"))]
        results = results_of(client.post(DIGITS, files=files))
        assert [(item["name"], item["predictions"][0]["label"]) for item in results] == [("a.png", "7"), ("b.png", "3")]

    def test_chunked_body_is_taken(self, client: httpx2.Client) -> None:
        pieces = (SEVEN[start : start + 50] for start in range(0, len(SEVEN), 50))
        answer = client.post(DIGITS, content=pieces, headers={"content-type": bodies.PNG})
        assert predictions_of(answer)[0]["label"] == "7"


class TestTopK:
    def test_five_predictions_are_the_default(self, client: httpx2.Client) -> None:
        assert len(predictions_of(post_raw(client, DIGITS, SEVEN))) == 5

    @pytest.mark.parametrize("top_k", [1, 3, 10])
    def test_as_many_predictions_as_asked_for_best_first(self, client: httpx2.Client, top_k: int) -> None:
        predictions = predictions_of(post_raw(client, DIGITS, SEVEN, top_k=top_k))
        scores = [best["score"] for best in predictions]
        assert len(predictions) == top_k
        assert scores == sorted(scores, reverse=True)
        assert predictions[0]["label"] == "7"

    @pytest.mark.parametrize("top_k", [11, 100])
    def test_more_than_there_are_classes_is_clamped(self, client: httpx2.Client, top_k: int) -> None:
        predictions = predictions_of(post_raw(client, DIGITS, SEVEN, top_k=top_k))
        assert sorted(best["index"] for best in predictions) == list(range(10))
        assert sum(best["score"] for best in predictions) == pytest.approx(1, abs=1e-4)

    def test_a_hundred_of_a_thousand_classes_are_given(self, client: httpx2.Client) -> None:
        assert len(predictions_of(post_raw(client, IMAGENET, SEVEN, top_k=100))) == 100

    @pytest.mark.parametrize("top_k", ["0", "-1", "101", "1.5", "five", "", "true", "null", "1000000000", str(2**63)])
    def test_out_of_bounds_in_the_query_is_refused(self, client: httpx2.Client, top_k: str) -> None:
        problem = problem_of(post_raw(client, DIGITS, SEVEN, top_k=top_k), 422, "invalid_parameter")
        assert "top_k" in problem["detail"]

    @pytest.mark.parametrize("top_k", [0, -1, 101, 1.5, "5", True, None, 10**9, 2**63, [5], {}])
    def test_out_of_bounds_in_json_is_refused(self, client: httpx2.Client, top_k: Any) -> None:
        problem = problem_of(post_json(client, DIGITS, in_base64(SEVEN, top_k=top_k)), 422, "invalid_parameter")
        assert "top_k" in problem["detail"]

    def test_json_may_say_top_k(self, client: httpx2.Client) -> None:
        assert len(predictions_of(post_json(client, DIGITS, in_base64(SEVEN, top_k=2)))) == 2

    def test_query_goes_with_a_json_body_that_does_not_say_it(self, client: httpx2.Client) -> None:
        assert len(predictions_of(post_json(client, DIGITS, in_base64(SEVEN, threshold=0.0), top_k=2))) == 2

    def test_query_goes_with_multipart(self, client: httpx2.Client) -> None:
        assert len(predictions_of(post_parts(client, DIGITS, bodies.image_part(SEVEN), top_k=2))) == 2


class TestThreshold:
    def test_lower_scores_are_left_out(self, client: httpx2.Client) -> None:
        everything = predictions_of(post_raw(client, DIGITS, bodies.drawn_digit(6), top_k=10))
        cut = everything[1]["score"]
        kept = predictions_of(post_raw(client, DIGITS, bodies.drawn_digit(6), top_k=10, threshold=cut))
        assert [best["index"] for best in kept] == [best["index"] for best in everything if best["score"] >= cut]
        assert 0 < len(kept) < 10

    def test_nothing_may_be_left(self, client: httpx2.Client) -> None:
        assert predictions_of(post_raw(client, DIGITS, bodies.drawn_digit(6), threshold=0.9999)) == []

    @pytest.mark.parametrize("threshold", ["-0.1", "1.1", "nan", "inf", "half", ""])
    def test_out_of_bounds_in_the_query_is_refused(self, client: httpx2.Client, threshold: str) -> None:
        problem = problem_of(post_raw(client, DIGITS, SEVEN, threshold=threshold), 422, "invalid_parameter")
        assert "threshold" in problem["detail"]

    @pytest.mark.parametrize("threshold", [-0.1, 1.1, "0.5", True, [0.5]])
    def test_out_of_bounds_in_json_is_refused(self, client: httpx2.Client, threshold: Any) -> None:
        problem = problem_of(post_json(client, DIGITS, in_base64(SEVEN, threshold=threshold)), 422, "invalid_parameter")
        assert "threshold" in problem["detail"]

    @pytest.mark.parametrize("threshold", [0, 1, 0.5])
    def test_bounds_themselves_are_taken_in_both_places(self, client: httpx2.Client, threshold: float) -> None:
        from_query = predictions_of(post_raw(client, DIGITS, SEVEN, threshold=threshold))
        from_body = predictions_of(post_json(client, DIGITS, in_base64(SEVEN, threshold=threshold)))
        assert_same_predictions(from_body, from_query, tolerance=1e-5)


class TestTimeout:
    @pytest.mark.parametrize("timeout_ms", ["0", "-1", "1.5", "soon"])
    def test_out_of_bounds_in_the_query_is_refused(self, client: httpx2.Client, timeout_ms: str) -> None:
        problem = problem_of(post_raw(client, DIGITS, SEVEN, timeout_ms=timeout_ms), 422, "invalid_parameter")
        assert "timeout_ms" in problem["detail"]

    @pytest.mark.parametrize("timeout_ms", [0, -1, 1.5, "50", True])
    def test_out_of_bounds_in_json_is_refused(self, client: httpx2.Client, timeout_ms: Any) -> None:
        answer = post_json(client, DIGITS, in_base64(SEVEN, timeout_ms=timeout_ms))
        assert "timeout_ms" in problem_of(answer, 422, "invalid_parameter")["detail"]

    def test_deadline_that_passes_while_the_model_runs_is_a_504(self, client: httpx2.Client) -> None:
        answer = post_raw(client, "/api/v1/models/slow/classify", RED, timeout_ms=20)
        problem_of(answer, 504, "deadline_exceeded")

    def test_deadline_may_stand_in_the_json_body(self, client: httpx2.Client) -> None:
        answer = post_json(client, "/api/v1/models/slow/classify", in_base64(RED, timeout_ms=20))
        problem_of(answer, 504, "deadline_exceeded")

    def test_longer_deadline_than_the_server_s_is_no_error(self, client: httpx2.Client) -> None:
        assert predictions_of(post_raw(client, DIGITS, SEVEN, timeout_ms=10**9))[0]["label"] == "7"


@pytest.mark.parametrize(
    ("name", "in_query", "in_body"), [("top_k", 3, 3), ("threshold", 0.1, 0.2), ("timeout_ms", 9000, 9000)]
)
def test_parameter_in_query_and_body_at_once_is_refused(
    client: httpx2.Client, name: str, in_query: float, in_body: float
) -> None:
    answer = post_json(client, DIGITS, in_base64(SEVEN, **{name: in_body}), **{name: in_query})
    assert name in problem_of(answer, 422, "invalid_parameter")["detail"]


class TestVersions:
    def test_highest_version_answers_where_none_is_named(self, client: httpx2.Client) -> None:
        answer = post_raw(client, COLORS, RED)
        assert answer.json()["version"] == "2"
        assert predictions_of(answer)[0]["label"] == "rouge"

    @pytest.mark.parametrize(("version", "label"), [("1", "red"), ("2", "rouge")])
    def test_named_version_answers_with_its_own_labels(self, client: httpx2.Client, version: str, label: str) -> None:
        answer = post_raw(client, f"/api/v1/models/colors/versions/{version}/classify", RED)
        assert answer.json()["version"] == version
        assert predictions_of(answer)[0]["label"] == label

    @pytest.mark.parametrize("version", ["4", "999999999999999999", "1" + "0" * 30])
    def test_unknown_version_is_not_found(self, client: httpx2.Client, version: str) -> None:
        answer = post_raw(client, f"/api/v1/models/colors/versions/{version}/classify", RED)
        problem_of(answer, 404, "model_not_found")

    @pytest.mark.parametrize("version", ["0", "01", "-1", "+1", "1.0", "latest", "1%20", "%D9%A1", "0x1", "1e0"])
    def test_ill_formed_version_is_not_found(self, client: httpx2.Client, version: str) -> None:
        answer = post_raw(client, f"/api/v1/models/colors/versions/{version}/classify", RED)
        problem_of(answer, 404, "model_not_found")

    def test_version_that_the_policy_leaves_out_is_not_ready(self, client: httpx2.Client) -> None:
        problem_of(post_raw(client, "/api/v1/models/colors/versions/3/classify", RED), 503, "model_not_ready")


class TestModels:
    def test_unknown_model_is_not_found(self, client: httpx2.Client) -> None:
        assert "'nothing'" in problem_of(post_raw(client, "/api/v1/models/nothing/classify", RED), 404)["detail"]

    def test_model_of_tensors_only_has_no_image_signature(self, client: httpx2.Client) -> None:
        problem_of(post_raw(client, "/api/v1/models/tensors/classify", RED), 409, "no_image_signature")

    def test_several_images_do_not_hide_that_a_model_takes_none(self, client: httpx2.Client) -> None:
        answer = post_json(client, "/api/v1/models/tensors/classify", in_base64(RED, b"no image"))
        problem_of(answer, 409, "no_image_signature")

    @pytest.mark.parametrize("model", ["broken", "damaged"])
    def test_broken_model_is_not_ready_and_says_when_to_come_again(self, client: httpx2.Client, model: str) -> None:
        answer = post_raw(client, f"/api/v1/models/{model}/classify", RED)
        assert problem_of(answer, 503, "model_not_ready")["detail"].startswith(f"Model '{model}' is not ready")

    @pytest.mark.parametrize("model", ["broken", "damaged"])
    def test_version_of_a_broken_model_is_not_ready_either(self, client: httpx2.Client, model: str) -> None:
        problem_of(post_raw(client, f"/api/v1/models/{model}/versions/1/classify", RED), 503, "model_not_ready")

    def test_index_names_every_model_with_its_state(self, client: httpx2.Client) -> None:
        models = {model["name"]: model for model in client.get("/api/v1/models").json()["models"]}
        assert list(models) == sorted(models)
        assert {name for name, model in models.items() if not model["ready"]} == {"broken", "damaged"}
        assert models.keys() >= {"digits", "fashion", "imagenet", "colors", "tensors", "slow"}
        assert "sise" in models["broken"]["reason"]
        assert models["damaged"]["versions"][0]["state"] == "UNAVAILABLE"
        states = {version["version"]: version["state"] for version in models["colors"]["versions"]}
        assert states == {"1": "READY", "2": "READY", "3": "UNKNOWN"}
        assert models["colors"]["default_version"] == "2"

    def test_index_gives_no_path_away(self, client: httpx2.Client, server: ServerProcess, repository: Any) -> None:
        assert str(repository.parent) not in client.get("/api/v1/models").text

    def test_description_of_a_model_says_how_to_ask_it(self, client: httpx2.Client) -> None:
        model = client.get("/api/v1/models/digits").json()
        assert (model["name"], model["ready"], model["task"], model["num_labels"]) == ("digits", True, "multiclass", 10)
        assert model["input"]["shape"] == [-1, 28, 28, 1]
        assert (model["input"]["dtype"], model["input"]["color"], model["input"]["layout"]) == (
            "float32",
            "gray",
            "nhwc",
        )
        assert model["batching"]["max_batch_size"] == 32
        version = model["versions"][0]
        assert version["provider"] == "cpu"
        assert len(version["sha256"]) == 64
        assert "labels" not in model

    def test_labels_are_listed_on_request(self, client: httpx2.Client) -> None:
        assert client.get("/api/v1/models/digits?labels=true").json()["labels"] == [str(digit) for digit in range(10)]
        (listed,) = [m for m in client.get("/api/v1/models?labels=1").json()["models"] if m["name"] == "colors"]
        assert listed["labels"] == ["rouge", "vert", "bleu"]

    def test_model_of_tensors_only_has_no_input_for_images(self, client: httpx2.Client) -> None:
        model = client.get("/api/v1/models/tensors").json()
        assert model["ready"] is True
        assert "input" not in model

    def test_description_of_an_unknown_model_is_not_found(self, client: httpx2.Client) -> None:
        problem_of(client.get("/api/v1/models/nothing"), 404, "model_not_found")

    def test_labels_flag_that_is_no_truth_value_is_refused(self, client: httpx2.Client) -> None:
        problem_of(client.get("/api/v1/models?labels=maybe"), 422, "invalid_parameter")


class TestSeveralImages:
    def test_results_come_in_the_order_of_the_images(self, client: httpx2.Client) -> None:
        pictures = [GREEN, RED, BLUE, RED, GREEN]
        results = results_of(post_json(client, COLORS, in_base64(*pictures)))
        assert [item["predictions"][0]["label"] for item in results] == ["vert", "rouge", "bleu", "rouge", "vert"]

    def test_names_are_given_back_where_they_were_given(self, client: httpx2.Client) -> None:
        named = {"b64": bodies.base64_text(RED), "name": "rosso.png"}
        results = results_of(post_json(client, COLORS, {"images": [named, {"b64": bodies.base64_text(GREEN)}]}))
        assert results[0]["name"] == "rosso.png"
        assert "name" not in results[1]

    def test_file_names_of_parts_are_the_names_of_their_results(self, client: httpx2.Client) -> None:
        parts = (bodies.image_part(RED, file_name="a b.png"), bodies.image_part(GREEN))
        results = results_of(post_parts(client, COLORS, *parts))
        assert results[0]["name"] == "a b.png"
        assert "name" not in results[1]

    def test_names_of_every_alphabet_come_back_as_they_went(self, client: httpx2.Client) -> None:
        name = "чашка ☕ \u202e \x00 \"'<b>.png"
        results = results_of(post_json(client, COLORS, {"images": [{"b64": bodies.base64_text(RED), "name": name}]}))
        assert results[0]["name"] == name

    def test_bad_image_has_its_error_in_its_place(self, client: httpx2.Client) -> None:
        pictures = [RED, GREEN, BLUE, b"no image", RED, GREEN, RED[:-30], BLUE]
        results = results_of(post_json(client, COLORS, in_base64(*pictures)))
        assert results[3].keys() == {"error"}
        assert (results[3]["error"]["code"], results[3]["error"]["status"]) == ("unsupported_media_type", 415)
        assert (results[6]["error"]["code"], results[6]["error"]["status"]) == ("invalid_image", 422)
        good = [item["predictions"][0]["label"] for item in results if "error" not in item]
        assert good == ["rouge", "vert", "bleu", "rouge", "vert", "bleu"]

    def test_bad_part_keeps_its_name_and_its_neighbours(self, client: httpx2.Client) -> None:
        parts = [
            bodies.image_part(RED, file_name="good.png", media_type=bodies.PNG),
            bodies.image_part(RED, file_name="bad.jpg", media_type=bodies.JPEG),
        ]
        good, bad = results_of(post_parts(client, COLORS, *parts))
        assert good["predictions"][0]["label"] == "rouge"
        assert (bad["name"], bad["error"]["code"]) == ("bad.jpg", "media_type_mismatch")

    def test_images_that_are_all_bad_are_answered_one_by_one(self, client: httpx2.Client) -> None:
        results = results_of(post_json(client, COLORS, in_base64(b"no", b"image")))
        assert [item["error"]["status"] for item in results] == [415, 415]

    @pytest.mark.parametrize(
        ("data", "status", "code"), [(b"no image", 415, "unsupported_media_type"), (RED[:-30], 422, "invalid_image")]
    )
    def test_one_bad_image_alone_is_an_error(self, client: httpx2.Client, data: bytes, status: int, code: str) -> None:
        problem_of(post_raw(client, COLORS, data), status, code)
        problem_of(post_json(client, COLORS, in_base64(data)), status, code)
        problem_of(post_parts(client, COLORS, bodies.image_part(data)), status, code)

    def test_no_image_is_refused(self, client: httpx2.Client) -> None:
        problem_of(post_json(client, COLORS, {"images": []}), 422, "invalid_parameter")

    def test_sixteen_images_are_answered(self, client: httpx2.Client) -> None:
        pictures = [(RED, GREEN, BLUE)[index % 3] for index in range(16)]
        for answer in (
            post_json(client, COLORS, in_base64(*pictures)),
            post_parts(client, COLORS, *map(bodies.image_part, pictures)),
        ):
            labels = [item["predictions"][0]["label"] for item in results_of(answer)]
            assert labels == [("rouge", "vert", "bleu")[index % 3] for index in range(16)]

    def test_seventeen_images_are_too_many(self, client: httpx2.Client) -> None:
        problem_of(post_json(client, COLORS, in_base64(*[RED] * 17)), 413, "payload_too_large")
        problem_of(post_parts(client, COLORS, *map(bodies.image_part, [RED] * 17)), 413, "payload_too_large")
