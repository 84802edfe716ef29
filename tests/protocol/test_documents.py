"""The OpenAPI document and whether answers keep to it, the documentation page, the front page, the probes."""

import json
import re
from typing import Any
from urllib.parse import urljoin

import httpx2
import pytest

from tests.support import bodies, openapi

CLASSIFY = "/api/v1/models/{model}/classify"
CLASSIFY_VERSION = "/api/v1/models/{model}/versions/{version}/classify"
RED = bodies.plain_color("red")
_TYPES = {
    "css": ("text/css",),
    "js": ("text/javascript", "application/javascript"),
    "svg": ("image/svg+xml",),
    "json": ("application/json",),
}
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


def schema_of(document: dict[str, Any], path: str, method: str, status: int, media_type: str) -> dict[str, Any]:
    content = document["paths"][path][method]["responses"][str(status)]["content"]
    found: dict[str, Any] = content[media_type]["schema"]
    return found


def assert_documented(document: dict[str, Any], path: str, answer: Any) -> None:
    """That the document knows this answer's status and media type, and that the body fits the schema."""
    method = answer.request.method.lower()
    schema = schema_of(document, path, method, answer.status_code, answer.headers["content-type"])
    assert openapi.problems(document, schema, answer.json()) == []


class TestDocument:
    def test_every_reference_leads_somewhere(self, document: dict[str, Any]) -> None:
        found = openapi.references(document)
        assert found
        for reference in found:
            assert openapi.resolve(document, reference)

    @pytest.mark.parametrize(("query", "fields", "status"), [("a" * 5000, 0, 414), ("", 200, 431)])
    def test_what_the_listener_refuses_is_documented_everywhere(
        self, client: httpx2.Client, document: dict[str, Any], query: str, fields: int, status: int
    ) -> None:
        operations = [(path, method) for path, methods in document["paths"].items() for method in methods]
        assert len(operations) > 25
        for path, method in operations:
            answer = client.request(method, f"{path}?{query}", headers=[("x-field", "a")] * fields)
            assert answer.status_code == status
            assert_documented(document, path, answer)

    @pytest.mark.parametrize("path", [CLASSIFY, CLASSIFY_VERSION])
    def test_all_three_forms_of_a_request_are_shown(self, document: dict[str, Any], path: str) -> None:
        body = document["paths"][path]["post"]["requestBody"]
        assert body["required"] is True
        assert body["content"].keys() == {
            "image/jpeg",
            "image/png",
            "image/webp",
            "multipart/form-data",
            "application/json",
        }
        assert body["content"]["image/jpeg"]["schema"] == {"type": "string", "format": "binary"}
        assert body["content"]["multipart/form-data"]["schema"]["required"] == ["image"]
        json_schema = openapi.resolve(document, body["content"]["application/json"]["schema"]["$ref"])
        assert json_schema["properties"].keys() == {"images", "top_k", "threshold", "timeout_ms"}

    @pytest.mark.parametrize("path", [CLASSIFY, CLASSIFY_VERSION])
    def test_parameters_of_the_query_are_shown_with_their_bounds(self, document: dict[str, Any], path: str) -> None:
        parameters = {entry["name"]: entry for entry in document["paths"][path]["post"]["parameters"]}
        assert {name for name, entry in parameters.items() if entry["in"] == "query"} == {
            "top_k",
            "threshold",
            "timeout_ms",
        }
        (number, _) = parameters["top_k"]["schema"]["anyOf"]
        assert (number["minimum"], number["maximum"]) == (1, 100)

    def test_good_answers_are_typed(self, document: dict[str, Any]) -> None:
        typed = {
            (path, method): operation["responses"]["200"]["content"]["application/json"]["schema"]
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
            if path != "/metrics" and not path.startswith(("/v1/", "/v2")) and not path.endswith("/card")  # text
        }
        assert typed[CLASSIFY, "post"] == {"$ref": "#/components/schemas/ClassifyOut"}
        assert typed["/api/v1/models", "get"] == {"$ref": "#/components/schemas/ModelsOut"}
        assert all("$ref" in schema for schema in typed.values())

    @pytest.mark.parametrize(
        ("path", "method"),
        [
            ("/v2", "get"),
            ("/v2/models/{model}/config", "get"),
            ("/v2/models/{model}/versions/{version}/stats", "get"),
            ("/v2/models/{model}/infer", "post"),
            ("/v2/models/{model}/versions/{version}/infer", "post"),
            ("/v2/repository/models/{model}/unload", "post"),
            ("/v1/models/{model}:predict", "post"),
        ],
    )
    def test_the_tensor_protocols_are_documented_with_their_own_errors(
        self, document: dict[str, Any], path: str, method: str
    ) -> None:
        responses = document["paths"][path][method]["responses"]
        assert "200" in responses
        for status, response in responses.items():
            if status not in ("200", "422", "414", "431"):  # the last two are the listener's, which knows no protocol
                assert response["content"]["application/json"]["schema"]["required"] == ["error"]

    def test_every_operation_has_a_name_of_its_own(self, document: dict[str, Any]) -> None:
        names = [each["operationId"] for operations in document["paths"].values() for each in operations.values()]
        assert len(set(names)) == len(names)

    def test_metrics_are_documented_as_text(self, document: dict[str, Any]) -> None:
        assert document["paths"]["/metrics"]["get"]["responses"]["200"]["content"].keys() == {"text/plain"}

    def test_every_error_of_the_native_api_is_documented_as_a_problem(self, document: dict[str, Any]) -> None:
        problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemOut"}}}
        wrong = [
            (path, method, status)
            for path, operations in document["paths"].items()
            if path.startswith("/api/v1")
            for method, operation in operations.items()
            for status, response in operation["responses"].items()
            if status != "200" and response.get("content") != problem
        ]
        assert wrong == []

    @pytest.mark.parametrize("path", [CLASSIFY, CLASSIFY_VERSION])
    def test_every_status_of_the_contract_is_documented(self, document: dict[str, Any], path: str) -> None:
        documented = {int(status) for status in document["paths"][path]["post"]["responses"]}
        assert documented >= {200, 400, 404, 408, 409, 413, 415, 422, 500, 503, 504}

    def test_examples_fit_their_own_schemas(self, document: dict[str, Any]) -> None:
        shown = [name for name, schema in document["components"]["schemas"].items() if "example" in schema]
        assert "ClassifyOut" in shown
        for name in shown:
            schema = document["components"]["schemas"][name]
            assert openapi.problems(document, schema, schema["example"]) == [], name


class TestAnswersKeepToTheDocument:
    @pytest.mark.parametrize("pictures", [[RED], [RED, b"no image", RED[:-30]]])
    def test_classification(self, client: httpx2.Client, document: dict[str, Any], pictures: list[bytes]) -> None:
        body = {"images": [{"b64": bodies.base64_text(data), "name": "x"} for data in pictures]}
        answer = client.post("/api/v1/models/colors/classify", json=body)
        assert answer.status_code == 200
        assert_documented(document, CLASSIFY, answer)

    def test_classification_by_a_version(self, client: httpx2.Client, document: dict[str, Any]) -> None:
        answer = client.post(
            "/api/v1/models/colors/versions/1/classify", content=RED, headers={"content-type": bodies.PNG}
        )
        assert answer.status_code == 200
        assert_documented(document, CLASSIFY_VERSION, answer)

    @pytest.mark.parametrize(
        ("model", "data", "media_type", "query", "status"),
        [
            ("colors", b"", bodies.PNG, "", 400),
            ("nothing", RED, bodies.PNG, "", 404),
            ("tensors", RED, bodies.PNG, "", 409),
            ("colors", RED, "text/plain", "", 415),
            ("colors", RED[:-30], bodies.PNG, "", 422),
            ("colors", RED, bodies.PNG, "?top_k=0", 422),
            ("broken", RED, bodies.PNG, "", 503),
            ("slow", RED, bodies.PNG, "?timeout_ms=20", 504),
            (
                "colors",
                b'{"images": ' + json.dumps([{"b64": "AA=="}] * 17).encode() + b"}",
                "application/json",
                "",
                413,
            ),
        ],
    )
    def test_errors_of_classification(
        self,
        client: httpx2.Client,
        document: dict[str, Any],
        model: str,
        data: bytes,
        media_type: str,
        query: str,
        status: int,
    ) -> None:
        answer = client.post(
            f"/api/v1/models/{model}/classify{query}", content=data, headers={"content-type": media_type}
        )
        assert answer.status_code == status
        assert_documented(document, CLASSIFY, answer)

    @pytest.mark.parametrize("query", ["", "?labels=true", "?labels=perhaps"])
    def test_index(self, client: httpx2.Client, document: dict[str, Any], query: str) -> None:
        assert_documented(document, "/api/v1/models", client.get(f"/api/v1/models{query}"))

    @pytest.mark.parametrize("model", ["digits", "colors", "tensors", "broken", "damaged", "nothing"])
    def test_description_of_a_model(self, client: httpx2.Client, document: dict[str, Any], model: str) -> None:
        assert_documented(document, "/api/v1/models/{model}", client.get(f"/api/v1/models/{model}"))

    @pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz"])
    def test_probes(self, client: httpx2.Client, document: dict[str, Any], path: str) -> None:
        answer = client.get(path)
        assert answer.status_code == 200
        assert_documented(document, path, answer)

    def test_limits_on_a_json_request_stand_in_its_schema(self, document: dict[str, Any]) -> None:
        schema = document["components"]["schemas"]["ClassifyBody"]
        assert schema["required"] == ["images"]
        assert schema["additionalProperties"] is False
        assert schema["properties"]["images"]["minItems"] == 1


class TestPages:
    @pytest.mark.parametrize("path", ["/docs", "/"])
    def test_page_needs_nothing_from_the_internet(self, client: httpx2.Client, path: str) -> None:
        page = client.get(path, headers={"accept": BROWSER})
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        fetched = re.findall(r"""<(?:link|script|img)[^>]*?(?:href|src)=["']([^"']+)["']""", page.text)
        fetched += re.findall(r"""\burl: ["']([^"']+)["']""", page.text)
        assert fetched
        for address in fetched:
            assert "//" not in address, f"{path} fetches {address}"
            asset = client.get(urljoin(path, address))
            assert asset.status_code == 200, address
            assert asset.content
            assert asset.headers["content-type"].split(";")[0] in _TYPES[address.rpartition(".")[2]]

    def test_links_of_the_front_page_lead_somewhere(self, client: httpx2.Client) -> None:
        page = client.get("/", headers={"accept": BROWSER})
        links = re.findall(r"""<a[^>]*href=["']([^"']+)["']""", page.text)
        assert links
        for address in links:
            assert client.get(urljoin("/", address)).status_code == 200, address

    @pytest.mark.parametrize(
        "accept", [BROWSER, "text/html", "application/json;q=0.5, text/html;q=0.9", "text/html;q=1.0, */*;q=0"]
    )
    def test_front_page_is_html_where_that_is_preferred(self, client: httpx2.Client, accept: str) -> None:
        answer = client.get("/", headers={"accept": accept})
        assert answer.headers["content-type"].startswith("text/html")

    @pytest.mark.parametrize(
        "accept",
        [
            "*/*",
            "application/json",
            "text/html;q=0.1, application/json",
            "text/html;q=0",
            "image/*",
            "nonsense;q=x",
            "",
        ],
    )
    def test_front_page_is_a_sign_of_life_for_programs(self, client: httpx2.Client, accept: str) -> None:
        answer = client.get("/", headers={"accept": accept})
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["status"] == "alive"

    def test_caches_are_told_that_the_front_page_has_two_forms(self, client: httpx2.Client) -> None:
        assert "accept" in client.get("/", headers={"accept": BROWSER}).headers.get("vary", "").lower()

    def test_pages_of_fastapi_s_own_are_off(self, client: httpx2.Client) -> None:
        assert client.get("/redoc").status_code == 404
        assert client.get("/docs/oauth2-redirect").status_code == 404


class TestProbes:
    @pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/metrics", "/"])
    def test_head_is_get_without_a_body(self, client: httpx2.Client, path: str) -> None:
        head, get = client.head(path), client.get(path)
        assert head.status_code == get.status_code == 200
        assert head.content == b""
        assert head.headers["content-type"] == get.headers["content-type"]

    def test_what_they_say(self, client: httpx2.Client) -> None:
        assert client.get("/livez").json() == {"status": "alive"}
        assert client.get("/readyz").json() == {"ready": True, "reason": "serving"}
        assert client.get("/startupz").json() == {"ready": True, "reason": "started"}
