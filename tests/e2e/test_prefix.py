"""The service published under a prefix, by a proxy that takes it off and by one that passes it on."""

import re
import shutil
from collections.abc import Iterator
from urllib.parse import urljoin

import httpx2
import pytest

from tests.support import bodies
from tests.support.server_process import MODEL_REPO, ServerProcess


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("prefix") / "model_repo"
    shutil.copytree(MODEL_REPO / "digits", repository / "digits")
    with ServerProcess(repository, "--server.root-path", "/vision", "--server.drain-delay-s", "0") as process:
        yield process.wait_until_ready()


@pytest.fixture(scope="module", params=["/vision", ""], ids=["passed_on", "taken_off"])
def client(server: ServerProcess, request: pytest.FixtureRequest) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url + request.param) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/static/style.css"])
def test_pages_and_probes(client: httpx2.Client, path: str) -> None:
    assert client.get(path).status_code == 200


def test_classify(client: httpx2.Client) -> None:
    answer = client.post(
        "/api/v1/models/digits/classify", content=bodies.drawn_digit(7), headers={"content-type": bodies.PNG}
    )
    assert answer.json()["results"][0]["predictions"][0]["label"] == "7"


def test_listing(client: httpx2.Client) -> None:
    assert [model["name"] for model in client.get("/api/v1/models").json()["models"]] == ["digits"]


def test_every_address_on_the_docs_page_has_the_prefix(client: httpx2.Client) -> None:
    addresses = re.findall(r"""(?:href|src)="([^"]+)"|url: '([^']+)'""", client.get("/docs").text)
    named = [one or other for one, other in addresses]
    assert len(named) >= 3
    for address in named:
        assert address.startswith("/vision/")
        assert client.get(str(httpx2.URL(client.base_url).join(address))).status_code == 200


def test_the_prefix_without_its_final_slash_leads_to_the_page(server: ServerProcess) -> None:
    answer = httpx2.get(f"{server.url}/vision", headers={"accept": "text/html"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/vision/")


def test_every_address_on_the_page_is_below_the_prefix(server: ServerProcess, client: httpx2.Client) -> None:
    page = client.get("/", headers={"accept": "text/html"})
    (base,) = re.findall(r'<base href="([^"]+)">', page.text)
    assert base == "/vision/"
    addresses = re.findall(r"""(?:href|src)="([^"#:]+)\"""", page.text)
    assert len(addresses) > 5
    for address in addresses:
        assert httpx2.get(urljoin(f"{server.url}{base}", address)).status_code == 200, address


def test_an_unknown_path_is_a_404(client: httpx2.Client) -> None:
    assert client.get("/visions/livez").status_code == 404
