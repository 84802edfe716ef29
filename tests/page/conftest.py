"""A browser with a fake camera, a server with good and bad models, pages whose consoles must stay silent."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect, sync_playwright

from tests.page.workbench import Workbench
from tests.support import bodies
from tests.support.server_process import MODEL_REPO, PROJECT, ServerProcess, serving

PICTURES = PROJECT / "build" / "page"
DESKTOP = ViewportSize(width=1280, height=900)
PHONE = ViewportSize(width=390, height=844)
_ANSWER_MS = 10_000  # two busy cores may take seconds for what takes one 50 ms
_FLAGS = [
    "--no-sandbox",  # as root in a container there is none
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]
Open = Callable[..., Workbench]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed models, patient with a busy machine, and beside them:

    colors    versions 1 and 2 in service, 3 not; version 1 speaks French
    strict    several labels may apply, and hardly any does
    tensors   takes no images
    broken    an unknown key in model.toml
    <markup>  labels that would be HTML, if anything were
    """
    root = tmp_path_factory.mktemp("page") / "model_repo"
    shutil.copytree(MODEL_REPO, root, ignore=shutil.ignore_patterns("recipes"))
    with (root / "imagenet" / "model.toml").open("a") as manifest:
        manifest.write("\n[batching]\nmax_queue_wait_ms = 30000\n")
    colors = bodies.mean_color_model()
    manifest = bodies.COLOR_MANIFEST
    two = manifest.replace("\n", "\nversion_policy = [1, 2]\n", 1)
    folder = bodies.write_model(root / "colors", colors, manifest=two, labels=bodies.COLORS)
    for version in ("2", "3"):
        shutil.copytree(folder / "1", folder / version)
    (folder / "1" / "labels.txt").write_text("rouge\nvert\nbleu\n")
    several = manifest + '[output]\ntask = "multilabel"\nthresholds = 0.99\n'
    bodies.write_model(root / "strict", colors, manifest=several, labels=bodies.COLORS)
    bodies.write_model(root / "tensors", colors)
    bodies.write_model(root / "broken", colors, manifest=manifest + 'sise = "large"\n', labels=bodies.COLORS)
    markup = ["<img src=x onerror=alert(1)>", "=HYPERLINK(1)", '"b", c']
    bodies.write_model(root / "markup", colors, manifest=manifest, labels=markup)
    (root / "markup" / "README.md").write_text("# markup\n\n<script>alert(1)</script> [a](javascript:alert(1))\n")
    return root


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[ServerProcess]:
    with serving(repository) as process:
        yield process


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Debian's Chromium; its camera sees a cup of espresso."""
    command = shutil.which("chromium")
    assert command is not None, "no chromium: make test-page installs it"
    film = tmp_path_factory.mktemp("camera") / "coffee.mjpeg"
    film.write_bytes(still_film("coffee.png"))
    expect.set_options(timeout=_ANSWER_MS)
    with sync_playwright() as playwright:
        flags = [*_FLAGS, f"--use-file-for-fake-video-capture={film}"]
        browser = playwright.chromium.launch(executable_path=command, args=flags)
        yield browser
        browser.close()


def still_film(photograph: str) -> bytes:
    """Motion JPEG in which nothing moves; Chromium plays it over and over."""
    with Image.open(io.BytesIO(bodies.photograph(photograph))) as image:
        return bodies.encoded(image.convert("RGB").resize((640, 480)), "JPEG", quality=92) * 2


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport=DESKTOP, permissions=["camera", "clipboard-read", "clipboard-write"])
    context.set_default_timeout(_ANSWER_MS)
    yield context
    context.close()


@pytest.fixture
def console() -> Iterator[list[str]]:
    """What went wrong in a page: a test that expects it takes it out."""
    said: list[str] = []
    yield said
    assert said == []


@pytest.fixture
def open_page(context: BrowserContext, server: ServerProcess, console: list[str]) -> Open:
    """Open the page at `url`, of the server by default, and wait until it knows the models."""

    def listen(page: Page) -> None:
        page.on("console", lambda said: console.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: console.append(f"{error.name}: {error.message}"))
        page.on(
            "filechooser", lambda chooser: None
        )  # from the start: told at the last moment, Chromium may open its own

    def opened(url: str = server.url, model: str | None = None, status: str = "ready") -> Workbench:
        page = context.new_page()
        listen(page)
        page.goto(url)
        bench = Workbench(page)
        expect(page.locator("#service")).to_contain_text(status)
        if model is not None:
            bench.choose_model(model)
        return bench

    return opened
