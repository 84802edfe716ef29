"""Images in, labels out: every way to bring images, every way it can fail, and all of it without a mouse."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.page.conftest import Open
from tests.page.workbench import color, digit, file
from tests.support import bodies
from tests.support.server_process import ServerProcess

CLASSIFY = "**/classify?*"


def test_a_photograph_gets_ranked_labels_with_bars_and_timing(open_page: Open, server: ServerProcess) -> None:
    bench = open_page(model="imagenet")
    coffee = bodies.photograph("coffee.png")
    bench.add(file("coffee.png", coffee))
    bench.predict_all()
    asked = httpx2.post(
        f"{server.url}/api/v1/models/imagenet/classify", content=coffee, headers={"content-type": bodies.PNG}
    )
    wanted = [(best["label"], best["score"]) for best in asked.json()["results"][0]["predictions"]]
    card = bench.card("coffee.png")
    assert bench.labels(card) == [(label, f"{score:.1%}") for label, score in wanted]
    assert wanted[0][0] == "espresso"
    bars = [float(bar.evaluate("bar => bar.style.getPropertyValue('--score')")) for bar in card.locator(".bar").all()]
    assert bars == pytest.approx([score for _, score in wanted], abs=1e-4)
    timing = card.locator(".timing").inner_text()
    total, seen = map(float, re.findall(r"([\d.]+) ms in the server, ([\d.]+) ms seen from here", timing)[0])
    stages = {name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+) ms(?: |$|\n)", timing)}
    assert stages.keys() == {"decode", "queue", "inference", "rest", "network"}
    assert sum(stages.values()) == pytest.approx(seen, abs=3)  # each is rounded
    assert seen >= total
    expect(card.locator(".state")).to_have_text("imagenet · version 1")


def test_everything_without_a_mouse(open_page: Open) -> None:
    bench = open_page()
    page = bench.page
    press(page, "Tab", until=page.locator("#skip"))
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    press(page, "Tab", until=page.get_by_label("Model", exact=True))
    page.keyboard.type("digits")
    expect(page.locator("#facts")).to_contain_text("10 labels")
    press(page, "Tab", until=page.locator("#choose"))
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([digit(3), digit(4)])
    expect(bench.cards).to_have_count(2)
    press(page, "Tab", until=bench.predict)
    page.keyboard.press("Enter")
    expect(bench.predict).to_have_text("Predict again")
    expect(bench.predict).to_be_focused()
    expect(page.get_by_role("status")).to_contain_text("digit 3.png: 3,")
    press(page, "Tab", until=page.get_by_role("button", name="Remove digit 3.png"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Remove digit 4.png")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#choose")).to_be_focused()
    press(page, "Shift+Tab", until=page.locator("#open-card"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#open-card")).to_be_focused()


def press(page: Page, key: str, until: Locator) -> None:
    """Go on through the page until `until` has the focus."""
    for _ in range(40):
        page.keyboard.press(key)
        if until.evaluate("part => part === document.activeElement"):
            return
    raise AssertionError(f"{key} never comes to {until}")


class TestBringing:
    @pytest.mark.parametrize("kind", ["drop", "paste"])
    def test_several_at_once(self, open_page: Open, kind: str) -> None:
        bench = open_page(model="colors")
        bench.put(kind, [color("red"), color("blue")])
        expect(bench.cards).to_have_count(2)
        bench.predict_all()
        assert [bench.labels(card)[0][0] for card in bench.cards.all()] == ["red", "blue"]

    def test_the_frame_says_that_it_would_take_them(self, open_page: Open) -> None:
        bench = open_page()
        bench.put("dragover", [color("red")])
        expect(bench.page.locator("#drop")).to_have_class("drop over")
        bench.put("drop", [color("red")])
        expect(bench.page.locator("#drop")).to_have_class("drop")

    def test_the_button_reads_the_clipboard(self, open_page: Open) -> None:
        bench = open_page(model="colors")
        bench.page.evaluate(
            """async (bytes) => {
                const image = new Blob([new Uint8Array(bytes)], { type: "image/png" });
                await navigator.clipboard.write([new ClipboardItem({ "image/png": image })]);
            }""",
            list(bodies.plain_color("green")),
        )
        bench.page.get_by_role("button", name="Paste").click()
        expect(bench.cards).to_have_count(1)
        bench.predict_all()
        assert bench.labels(bench.card("pasted image"))[0][0] == "green"

    def test_text_is_pasted_where_text_goes(self, open_page: Open) -> None:
        bench = open_page()
        bench.page.evaluate("navigator.clipboard.writeText('7')")
        bench.page.get_by_label("Labels shown").select_text()
        bench.page.keyboard.press("Control+V")
        expect(bench.page.get_by_label("Labels shown")).to_have_value("7")

    def test_what_is_no_image_is_left_out_by_name(self, open_page: Open) -> None:
        bench = open_page()
        bench.put("drop", [file("notes.txt", b"words", "text/plain"), color("red")])
        expect(bench.cards).to_have_count(1)
        expect(bench.notice).to_have_text("Left out: notes.txt is not an image.")

    def test_the_type_is_what_the_bytes_are(self, open_page: Open) -> None:
        bench = open_page(model="colors")
        bench.add(file("really a png.jpg", bodies.plain_color("red"), bodies.JPEG))
        bench.predict_all()
        assert bench.labels(bench.cards.first)[0][0] == "red"

    def test_a_picture_shows_what_was_brought(self, open_page: Open) -> None:
        bench = open_page()
        bench.add(file("coffee.png", bodies.photograph("coffee.png")))
        picture = bench.page.get_by_role("img", name="coffee.png")
        assert picture.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])") == [
            600,
            400,
        ]

    def test_no_more_than_the_page_can_hold(self, open_page: Open) -> None:
        bench = open_page()
        bench.put("drop", [color("red")] * 101)
        expect(bench.notice).to_contain_text("100 images are the most")
        expect(bench.cards).to_have_count(100)


class TestAsking:
    def test_version_and_number_of_labels_are_asked_for(self, open_page: Open) -> None:
        bench = open_page()
        bench.choose_model("colors", "1")
        bench.page.get_by_label("Labels shown").fill("2")
        bench.add(color("red"))
        with bench.page.expect_request(CLASSIFY) as sent:
            bench.predict_all()
        assert sent.value.url.endswith("/api/v1/models/colors/versions/1/classify?top_k=2")
        assert sent.value.headers["content-type"] == bodies.PNG
        assert [label for label, _ in bench.labels(bench.cards.first)] == ["rouge", "vert"]
        bench.choose_model("colors", "2")
        expect(bench.predict).to_have_text("Predict 1 image")
        bench.predict_all()
        assert [label for label, _ in bench.labels(bench.cards.first)] == ["red", "green"]

    def test_only_what_has_no_answer_yet_is_asked_again(self, open_page: Open) -> None:
        bench = open_page(model="colors")
        asked: list[str] = []
        bench.page.on("request", lambda request: asked.append(request.url) if "classify" in request.url else None)
        bench.add(color("red"))
        bench.predict_all()
        bench.add(color("blue"), color("green"))
        expect(bench.predict).to_have_text("Predict 2 images")
        bench.predict_all()
        assert len(asked) == 3
        bench.predict.click()
        expect(bench.entries).to_have_count(6)

    def test_the_curl_line_asks_the_same(self, open_page: Open, tmp_path: Path) -> None:
        bench = open_page(model="digits")
        (tmp_path / "it's a 5.png").write_bytes(bodies.drawn_digit(5))
        bench.add(file("it's a 5.png", bodies.drawn_digit(5)))
        bench.page.get_by_text("The request as a curl line").click()
        line = bench.page.locator("#curl").inner_text()
        ran = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
        bench.predict_all()
        answer = json.loads(ran.stdout)["results"][0]["predictions"]
        assert bench.labels(bench.cards.first) == [(best["label"], f"{best['score']:.1%}") for best in answer]
        bench.page.get_by_role("button", name="Copy").click()
        assert shlex.split(bench.page.evaluate("navigator.clipboard.readText()")) == shlex.split(line)

    def test_the_choice_of_model_is_kept(self, open_page: Open) -> None:
        bench = open_page(model="fashion")
        bench.page.reload()
        expect(bench.page.get_by_label("Model", exact=True)).to_have_value("fashion")

    def test_labels_and_names_are_text_whatever_they_hold(self, open_page: Open) -> None:
        bench = open_page(model="markup")
        bench.add(file("<b>x</b>.png", bodies.plain_color("red")))
        bench.predict_all()
        assert bench.labels(bench.card("<b>x</b>.png"))[0][0] == "<img src=x onerror=alert(1)>"
        expect(bench.entries.first).to_contain_text("<img src=x onerror=alert(1)>")


class TestNotWorking:
    def test_a_damaged_image_says_why_beside_its_neighbours(self, open_page: Open, console: list[str]) -> None:
        bench = open_page(model="colors")
        bench.add(color("red"), file("damaged.png", bodies.plain_color("blue")[:-30]))
        bench.predict.click()
        expect(bench.card("damaged.png").locator(".problem")).to_contain_text("(invalid_image)")
        expect(bench.card("red.png").locator(".labels li")).to_have_count(3)
        expect(bench.page.get_by_role("status")).to_contain_text("1 without an answer")
        expect(bench.predict).to_have_text("Predict 1 image")
        assert all("422" in line for line in console)
        console.clear()

    @pytest.mark.parametrize(
        ("model", "words"), [("broken", "is not ready: broken/model.toml"), ("tensors", "takes tensors, not images")]
    )
    def test_a_model_that_cannot_be_asked_says_why(self, open_page: Open, model: str, words: str) -> None:
        bench = open_page(model=model)
        bench.add(color("red"))
        expect(bench.page.locator("#model-problem")).to_contain_text(words)
        expect(bench.predict).to_be_disabled()

    def test_a_busy_server_is_asked_again_when_it_says(self, open_page: Open, console: list[str]) -> None:
        bench = open_page(model="colors")
        refusals = [1]

        def busy_once(route: Route) -> None:
            if refusals:
                refusals.pop()
                route.fulfill(status=503, headers={"Retry-After": "1"}, json={"code": "overloaded", "detail": "Busy."})
            else:
                route.continue_()

        bench.page.route(CLASSIFY, busy_once)
        bench.add(color("red"))
        bench.predict_all()
        assert bench.labels(bench.cards.first)[0][0] == "red"
        assert ["503" in line for line in console] == [True]
        console.clear()

    def test_a_server_that_is_gone(self, open_page: Open, console: list[str]) -> None:
        bench = open_page(model="colors")
        bench.add(color("red"))
        bench.page.route("**/api/**", lambda route: route.abort("connectionrefused"))
        bench.predict.click()
        expect(bench.cards.first.locator(".problem")).to_have_text("The server cannot be reached. (unreachable)")
        expect(bench.page.locator("#service")).to_have_text("The server cannot be reached")
        bench.page.unroute("**/api/**")
        bench.predict_all()
        assert bench.labels(bench.cards.first)[0][0] == "red"
        console.clear()

    def test_a_proxy_s_error_page_is_no_json(self, open_page: Open, console: list[str]) -> None:
        bench = open_page(model="colors")
        bench.page.route(CLASSIFY, lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
        bench.add(color("red"))
        bench.predict.click()
        expect(bench.cards.first.locator(".problem")).to_have_text("The server answered 502. (http_502)")
        console.clear()

    def test_a_server_that_wants_a_token_gets_it(self, open_page: Open, console: list[str]) -> None:
        bench = open_page(model="colors")
        sent: list[str | None] = []

        def guarded(route: Route) -> None:
            sent.append(route.request.headers.get("authorization"))
            if sent[-1] == "Bearer opensesame":
                route.continue_()
            else:
                route.fulfill(status=401, json={"code": "unauthorized", "detail": "Give a token."})

        bench.page.route(CLASSIFY, guarded)
        bench.add(color("red"))
        bench.predict.click()
        expect(bench.cards.first.locator(".problem")).to_have_text("Give a token. (unauthorized)")
        bench.page.get_by_label("Access token of this server").fill("opensesame")
        bench.predict_all()
        assert sent == [None, "Bearer opensesame"]
        assert "opensesame" not in bench.page.locator("#curl").inner_text()
        console.clear()

    def test_what_is_under_way_can_be_stopped(self, open_page: Open) -> None:
        bench = open_page(model="colors")
        held: list[Route] = []
        bench.page.route(CLASSIFY, lambda route: held.append(route))
        bench.add(*[color("red")] * 6)
        bench.predict.click()
        expect(bench.predict).to_have_text("Stop (0 of 6)")
        expect(bench.page.locator("[aria-busy=true]")).to_have_count(4)  # no more at once
        bench.predict.click()
        expect(bench.page.locator(".card .state", has_text="Stopped")).to_have_count(6)
        expect(bench.predict).to_have_text("Predict 6 images")


def test_each_answer_stands_with_its_own_picture(open_page: Open) -> None:
    """Whatever order they come in: the first is held back until the others have been answered."""
    bench = open_page(model="digits")
    held: list[Route] = []

    def first_comes_last(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    bench.page.route(CLASSIFY, first_comes_last)
    numbers = (3, 4, 5, 7, 8, 9)
    bench.add(*[digit(number) for number in numbers])
    bench.predict.click()
    expect(bench.predict).to_have_text("Stop (5 of 6)")
    held[0].continue_()
    expect(bench.predict).to_have_text("Predict again")
    assert [bench.labels(card)[0][0] for card in bench.cards.all()] == [str(number) for number in numbers]
