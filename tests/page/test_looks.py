"""What the page looks like: axe finds nothing, nothing runs out of a narrow screen; with pictures in build/page/."""

from collections.abc import Callable, Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect

from tests.page.conftest import DESKTOP, PHONE, PICTURES, Open
from tests.page.workbench import Workbench, color, file
from tests.support import bodies

NARROW = ViewportSize(width=320, height=640)  # WCAG 1.4.10: 1280 px at 400 %
SCREENS = {
    f"{name}-{scheme}": (size, scheme)
    for name, size in (("desktop", DESKTOP), ("phone", PHONE), ("narrow", NARROW))
    for scheme in ("light", "dark")
}


@pytest.fixture(params=sorted(SCREENS))
def screen(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def context(browser: Browser, screen: str) -> Iterator[BrowserContext]:
    """In place of the desktop of the other tests: each screen. Without motion, so that no color is caught half-way."""
    size, scheme = SCREENS[screen]
    context = browser.new_context(
        viewport=size,
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
        permissions=["camera"],
        device_scale_factor=2 if size["width"] < 600 else 1,
    )
    context.set_default_timeout(20_000)
    yield context
    context.close()


def empty(bench: Workbench) -> None:
    expect(bench.page.locator("#empty")).to_be_visible()


def answered(bench: Workbench) -> None:
    bench.choose_model("imagenet")
    photographs = ("coffee.png", "chelsea.png", "astronaut.png")
    bench.add(*[file(name, bodies.photograph(name)) for name in photographs])
    bench.page.get_by_text("The request as a curl line").click()
    bench.predict_all()


def failed(bench: Workbench) -> None:
    bench.choose_model("colors")
    bench.add(color("red"), file("a rather long name of a damaged file.jpg", b"\xff\xd8\xff\xe0 no", bodies.JPEG))
    bench.put("drop", [file("notes.txt", b"words", "text/plain")])
    bench.predict.click()
    expect(bench.cards.last.locator(".problem")).to_be_visible()
    expect(bench.predict).to_have_text("Predict 1 image")
    bench.choose_model("broken")


def live(bench: Workbench) -> None:
    bench.choose_model("imagenet")
    bench.page.get_by_role("button", name="Camera", exact=True).click()
    bench.page.get_by_role("button", name="Classify live").click()
    expect(bench.page.locator("#live-labels li").first).to_contain_text("espresso")


def card(bench: Workbench) -> None:
    bench.choose_model("imagenet")
    bench.page.get_by_role("button", name="Model card").click()
    expect(bench.page.get_by_role("heading", name="Origin and licence")).to_be_attached()


def clearing(bench: Workbench) -> None:
    bench.choose_model("colors")
    bench.add(color("red"))
    bench.predict_all()
    bench.page.get_by_role("button", name="Clear", exact=True).click()


@pytest.mark.parametrize("scene", [empty, answered, failed, live, card, clearing], ids=lambda scene: scene.__name__)
def test_a_scene(open_page: Open, console: list[str], screen: str, scene: Callable[[Workbench], None]) -> None:
    bench = open_page()
    scene(bench)
    PICTURES.mkdir(parents=True, exist_ok=True)
    bench.page.screenshot(path=PICTURES / f"{scene.__name__}-{screen}.png", full_page=scene not in (card, clearing))
    assert violations(bench.page) == []
    assert width_left_over(bench.page) <= 0
    if scene is failed:
        console.clear()


def violations(page: Page) -> list[str]:
    """What axe finds, by all its rules: WCAG 2.0 to 2.2, A and AA, and best practices."""
    found = Axe().run(page, options={"rules": {"target-size": {"enabled": True}}}).response["violations"]
    return [f"{each['id']}: {node['html']} {node['failureSummary']}" for each in found for node in each["nodes"]]


def width_left_over(page: Page) -> int:
    """By how many pixels something is wider than the screen."""
    width: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return width
