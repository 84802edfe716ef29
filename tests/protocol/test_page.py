"""The page's files as they are served, their headers, and the model cards. What the page does is in tests/page."""

import re

import httpx2
import pytest

from tests.support import openapi
from tests.support.answers import problem_of
from tests.support.server_process import MODEL_REPO, PROJECT

HTML = {"accept": "text/html"}
STATIC = PROJECT / "service" / "rest" / "static"


def policy_of(answer: httpx2.Response) -> dict[str, list[str]]:
    directives = (directive.split() for directive in answer.headers["content-security-policy"].split(";"))
    return {name: sources for name, *sources in directives}


class TestPolicy:
    def test_nothing_is_allowed_but_what_is_named(self, client: httpx2.Client) -> None:
        policy = policy_of(client.get("/", headers=HTML))
        assert policy["default-src"] == ["'none'"]
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == ["'self'"]
        assert policy["frame-ancestors"] == ["'none'"]
        assert not [source for sources in policy.values() for source in sources if "unsafe" in source or "*" in source]

    def test_no_text_becomes_html_or_a_script(self, client: httpx2.Client) -> None:
        policy = policy_of(client.get("/", headers=HTML))
        assert policy["require-trusted-types-for"] == ["'script'"]
        assert policy["trusted-types"] == ["'none'"]

    def test_the_page_keeps_to_it(self) -> None:
        html = (STATIC / "index.html").read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", html)

    def test_the_camera_is_the_page_s_own_and_the_microphone_nobody_s(self, client: httpx2.Client) -> None:
        granted = client.get("/", headers=HTML).headers["permissions-policy"]
        assert "camera=(self)" in granted
        assert "microphone=()" in granted

    def test_an_answer_for_programs_has_no_policy(self, client: httpx2.Client) -> None:
        assert "content-security-policy" not in client.get("/").headers


class TestFiles:
    def test_it_is_one_module_and_one_style_sheet(self, client: httpx2.Client) -> None:
        html = client.get("/", headers=HTML).text
        assert re.findall(r'<script type="module" src="([^"]+)">', html) == ["static/page.js"]
        assert re.findall(r'<link rel="stylesheet" href="([^"]+)">', html) == ["static/style.css"]
        assert "import " not in re.sub(r"//.*", "", (STATIC / "page.js").read_text())
        assert "url(" not in (STATIC / "style.css").read_text()

    @pytest.mark.parametrize("name", sorted(path.name for path in STATIC.iterdir()))
    def test_a_file_is_asked_for_again_and_not_sent_again(self, client: httpx2.Client, name: str) -> None:
        first = client.get(f"/static/{name}")
        assert first.status_code == 200
        assert first.headers["cache-control"] == "no-cache"
        again = client.get(f"/static/{name}", headers={"if-none-match": first.headers["etag"]})
        assert again.status_code == 304
        assert again.headers["cache-control"] == "no-cache"
        assert again.content == b""

    def test_the_page_is_never_older_than_the_server(self, client: httpx2.Client) -> None:
        assert client.get("/", headers=HTML).headers["cache-control"] == "no-cache"

    def test_every_element_that_the_module_looks_for_is_on_the_page(self) -> None:
        html = (STATIC / "index.html").read_text()
        script = (STATIC / "page.js").read_text()
        wanted = set(re.findall(r'(?:\$|\bclone|\bon)\("([a-z-]+)"', script))
        assert len(wanted) > 40
        assert sorted(wanted - set(re.findall(r'\bid="([^"]+)"', html))) == []


class TestCard:
    @pytest.mark.parametrize("model", ["digits", "imagenet"])
    def test_card_is_the_model_s_readme(self, client: httpx2.Client, model: str) -> None:
        answer = client.get(f"/api/v1/models/{model}/card")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
        assert answer.text == (MODEL_REPO / model / "README.md").read_text("utf-8")
        assert client.get(f"/api/v1/models/{model}").json()["card"] is True

    def test_model_without_a_card_says_what_to_do(self, client: httpx2.Client) -> None:
        assert client.get("/api/v1/models/colors").json()["card"] is False
        problem = problem_of(client.get("/api/v1/models/colors/card"), 404, "no_model_card")
        assert "README.md" in problem["detail"]

    def test_broken_model_has_its_card(self, client: httpx2.Client) -> None:
        assert client.get("/api/v1/models/broken").json()["ready"] is False
        answer = client.get("/api/v1/models/broken/card")
        assert (answer.status_code, answer.text) == (200, "# broken\n\nWhat became of it: caf\ufffd.\n")

    def test_unknown_model(self, client: httpx2.Client) -> None:
        problem_of(client.get("/api/v1/models/nothing/card"), 404, "model_not_found")

    def test_endless_card_is_refused(self, client: httpx2.Client) -> None:
        problem = problem_of(client.get("/api/v1/models/damaged/card"), 404, "no_model_card")
        assert "larger than 1048576 bytes" in problem["detail"]

    def test_card_is_documented(self, client: httpx2.Client) -> None:
        document = client.get("/openapi.json").json()
        responses = document["paths"]["/api/v1/models/{model}/card"]["get"]["responses"]
        assert responses["200"]["content"] == {"text/markdown": {"schema": {"type": "string"}}}
        problem = client.get("/api/v1/models/colors/card")
        schema = responses["404"]["content"][problem.headers["content-type"]]["schema"]
        assert openapi.problems(document, schema, problem.json()) == []
