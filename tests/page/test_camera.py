"""The camera, which sees a cup of espresso: photographs, and live at a steady rate that never queues behind itself."""

import re
import time
from itertools import pairwise

import pytest
from playwright.sync_api import Route, expect

from tests.page.conftest import Open
from tests.page.workbench import Workbench

CLASSIFY = "**/classify?*"


def with_camera(open_page: Open) -> Workbench:
    bench = open_page(model="imagenet")
    bench.page.get_by_role("button", name="Camera", exact=True).click()
    expect(bench.page.locator("#camera")).to_be_visible()
    return bench


def go_live(bench: Workbench, rate: int) -> None:
    bench.page.get_by_label("Images a second").select_option(str(rate))
    bench.page.get_by_role("button", name="Classify live").click()


def test_a_photograph_is_taken_and_predicted(open_page: Open) -> None:
    bench = with_camera(open_page)
    bench.page.get_by_role("button", name="Take photo").click()
    expect(bench.cards).to_have_count(1)
    bench.predict_all()
    assert bench.labels(bench.cards.first)[0][0] == "espresso"
    expect(bench.entries).to_have_count(1)


def test_live_labels_change_in_place_and_enter_no_history(open_page: Open) -> None:
    bench = with_camera(open_page)
    go_live(bench, 5)
    expect(bench.page.locator("#live-labels li").first).to_contain_text("espresso")
    expect(bench.page.locator("#live-verdict")).to_contain_text("espresso")
    expect(bench.page.get_by_role("status")).to_contain_text("espresso")
    row = bench.page.locator("#live-labels li").first.element_handle()
    with bench.page.expect_response(CLASSIFY), bench.page.expect_response(CLASSIFY):
        pass
    assert row.evaluate("row => row.isConnected")
    bench.page.get_by_role("button", name="Stop live").click()
    expect(bench.page.locator("#live-verdict")).to_be_hidden()
    expect(bench.entries).to_have_count(0)


@pytest.mark.parametrize("rate", [2, 5])
def test_the_rate_is_steady(open_page: Open, rate: int) -> None:
    bench = with_camera(open_page)
    sent: list[float] = []
    bench.page.on("request", lambda request: sent.append(time.monotonic()) if "classify" in request.url else None)
    go_live(bench, rate)
    while len(sent) < 2 * rate + 1:
        bench.page.wait_for_timeout(50)  # lets Playwright hear of requests
    gaps = sorted(after - before for before, after in pairwise(sent))
    middle = gaps[len(gaps) // 2]
    assert middle == pytest.approx(1 / rate, rel=0.25)


def test_a_slow_server_is_never_asked_twice_at_once(open_page: Open) -> None:
    bench = with_camera(open_page)
    held: list[Route] = []
    answering = False

    def hold(route: Route) -> None:
        if answering:
            route.continue_()
        else:
            held.append(route)

    bench.page.route(CLASSIFY, hold)
    go_live(bench, 10)
    while not held:
        bench.page.wait_for_timeout(20)  # lets Playwright hear of requests
    bench.page.wait_for_timeout(1_000)  # ten more images would have been due
    assert len(held) == 1
    answering = True
    held[0].continue_()
    figures = bench.page.locator("#live-figures")
    expect(figures).to_contain_text("skipped while busy")
    skipped = re.search(r"(\d+) skipped", figures.inner_text())
    assert skipped is not None
    assert int(skipped[1]) >= 7


def test_a_busy_server_is_left_alone_as_long_as_it_says(open_page: Open, console: list[str]) -> None:
    bench = with_camera(open_page)
    asked: list[float] = []

    def busy_once(route: Route) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            route.fulfill(status=503, headers={"Retry-After": "2"}, json={"code": "overloaded", "detail": "Busy."})
        else:
            route.continue_()

    bench.page.route(CLASSIFY, busy_once)
    go_live(bench, 10)
    expect(bench.page.locator("#live-labels li").first).to_contain_text("espresso")
    assert asked[1] - asked[0] >= 1.9
    assert ["503" in line for line in console] == [True]
    console.clear()


def test_closing_frees_the_camera(open_page: Open) -> None:
    bench = with_camera(open_page)
    go_live(bench, 5)
    track = bench.page.evaluate_handle("document.querySelector('video').srcObject.getTracks()[0]")
    bench.page.get_by_role("button", name="Close camera").click()
    assert track.evaluate("track => track.readyState") == "ended"
    expect(bench.page.locator("#camera")).to_be_hidden()
    expect(bench.page.get_by_role("button", name="Camera", exact=True)).to_be_focused()


def test_a_camera_that_may_not_be_used(open_page: Open) -> None:
    bench = open_page()
    bench.page.evaluate(
        """() => {
            navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("", "NotAllowedError"));
        }"""
    )
    bench.page.get_by_role("button", name="Camera", exact=True).click()
    expect(bench.notice).to_contain_text("may not use the camera")


def test_where_pages_get_no_camera_the_device_s_own_takes_the_photograph(open_page: Open) -> None:
    bench = open_page(model="colors")
    bench.page.evaluate("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    with bench.page.expect_file_chooser() as chooser:
        bench.page.get_by_role("button", name="Camera", exact=True).click()
    assert chooser.value.element.get_attribute("capture") == "environment"
