"""A model's card and state, and the page under a prefix."""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.page.conftest import Open
from tests.page.workbench import digit
from tests.support.server_process import MODEL_REPO, serving


def test_card_and_state_of_a_model(open_page: Open) -> None:
    bench = open_page(model="imagenet")
    bench.page.get_by_role("button", name="Model card and state").click()
    dialog = bench.page.get_by_role("dialog", name="imagenet")
    expect(dialog.get_by_text("EfficientNet-Lite0, the smallest of a family")).to_be_visible()
    expect(dialog.get_by_role("heading", name="Parity")).to_be_attached()
    expect(dialog.get_by_role("columnheader", name="licence")).to_be_attached()
    expect(dialog.get_by_role("cell", name="1/model.onnx, 18,543,301 bytes")).to_be_attached()
    expect(dialog.locator(".prose")).not_to_contain_text("written by the recipe")  # an HTML comment
    expect(dialog.locator("#versions")).to_contain_text("READY")
    expect(dialog.locator("#signature")).to_contain_text("224 × 224 rgb, float32, NCHW")
    bench.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_states_of_versions_with_their_reasons(open_page: Open) -> None:
    bench = open_page(model="colors")
    bench.page.get_by_role("button", name="Model card and state").click()
    versions = bench.page.locator("#versions > li")
    expect(versions).to_have_count(3)
    expect(versions.nth(1)).to_contain_text("Version 2 READY")
    expect(versions.nth(2)).to_contain_text("Version 3 UNKNOWN")
    expect(bench.page.locator("#card-text")).to_contain_text("This model has no card")
    bench.page.get_by_role("button", name="Close", exact=True).click()
    assert bench.page.locator("#version option[value='3']").is_disabled()


def test_a_card_is_text_and_runs_nothing(open_page: Open) -> None:
    bench = open_page(model="markup")
    bench.page.get_by_role("button", name="Model card and state").click()
    text = bench.page.locator("#card-text")
    expect(text).to_have_text("<script>alert(1)</script> a")
    assert text.locator("a, script").count() == 0


@pytest.mark.parametrize("path", ["/vision", "/vision/", "/"], ids=["no_slash", "slash", "taken_off"])
def test_under_a_prefix(open_page: Open, tmp_path: Path, path: str) -> None:
    shutil.copytree(MODEL_REPO / "digits", tmp_path / "digits")
    with serving(tmp_path, "--server.root-path", "/vision") as server:
        bench = open_page(server.url + path, model="digits")
        bench.add(digit(8))
        with bench.page.expect_request("**/classify?*") as sent:
            bench.predict_all()
        assert sent.value.url == f"{server.url}/vision/api/v1/models/digits/classify?top_k=5"
        assert bench.labels(bench.cards.first)[0][0] == "8"
        bench.page.get_by_role("button", name="Model card and state").click()
        expect(bench.page.get_by_role("heading", name="Network and training")).to_be_attached()
