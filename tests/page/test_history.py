"""The history: in this browser only, searched, exported, cleared."""

import csv
import io
import json
from pathlib import Path

from playwright.sync_api import expect

from tests.page.conftest import Open
from tests.page.workbench import Workbench, color, digit


def with_history(open_page: Open) -> Workbench:
    """Two digits, and a color by each of two versions."""
    bench = open_page(model="digits")
    bench.add(digit(3), digit(4))
    bench.predict_all()
    bench.page.get_by_role("button", name="Remove all").click()
    bench.choose_model("colors", "2")
    bench.add(color("red"))
    bench.predict_all()
    bench.choose_model("colors", "1")
    bench.predict_all()
    expect(bench.entries).to_have_count(4)
    return bench


def saved(bench: Workbench, button: str) -> str:
    with bench.page.expect_download() as download:
        bench.page.get_by_role("button", name=button).click()
    return Path(download.value.path()).read_text("utf-8")


def test_an_entry_has_picture_model_version_labels_and_time(open_page: Open) -> None:
    bench = with_history(open_page)
    newest = bench.entries.first
    expect(newest).to_contain_text("rouge")
    expect(newest).to_contain_text("colors · version 1 · red.png")
    assert newest.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
    assert newest.locator("time").get_attribute("datetime")


def test_it_outlives_the_page_and_other_tabs_see_it(open_page: Open) -> None:
    bench = with_history(open_page)
    bench.page.reload()
    expect(bench.entries).to_have_count(4)
    expect(bench.entries.first.locator("img")).to_be_visible()
    other = open_page()
    expect(other.entries).to_have_count(4)


def test_it_is_sent_to_nobody(open_page: Open) -> None:
    bench = open_page(model="colors")
    sent: list[str] = []
    bench.page.on("request", lambda request: sent.append(request.method) if request.url.startswith("http") else None)
    bench.add(color("red"))
    bench.predict_all()
    bench.page.get_by_label("Search the history").fill("red")
    expect(bench.entries).to_have_count(1)
    assert sent.count("POST") == 1
    assert set(sent) <= {"POST", "GET"}


def test_search_wants_every_word(open_page: Open) -> None:
    bench = with_history(open_page)
    search = bench.page.get_by_label("Search the history")
    for words, count in (("colors", 2), ("COLORS rouge", 1), ("digit 3.png", 1), ("nothing like it", 0), ("", 4)):
        search.fill(words)
        expect(bench.entries).to_have_count(count)
    search.fill("zebra")
    expect(bench.page.locator("#history-empty")).to_have_text("Nothing in the history has all of these words.")


def test_export_to_json_holds_what_the_search_left(open_page: Open) -> None:
    bench = with_history(open_page)
    bench.page.get_by_label("Search the history").fill("version 1 colors")
    (entry,) = json.loads(saved(bench, "Export JSON"))
    assert (entry["model"], entry["version"], entry["image"]) == ("colors", "1", "red.png")
    assert [best["label"] for best in entry["labels"]] == ["rouge", "vert", "bleu"]
    assert entry["timings_ms"]["total"] > 0
    assert entry["time"].endswith("Z")
    assert entry.keys().isdisjoint({"thumbnail", "id"})


def test_export_to_csv_has_a_row_a_label(open_page: Open) -> None:
    bench = with_history(open_page)
    rows = list(csv.DictReader(io.StringIO(saved(bench, "Export CSV"), newline="")))
    assert len(rows) == 3 + 3 + 5 + 5
    assert [row["label"] for row in rows[:3]] == ["rouge", "vert", "bleu"]
    assert [row["rank"] for row in rows[:3]] == ["1", "2", "3"]
    assert float(rows[0]["score"]) > float(rows[1]["score"])


def test_a_spreadsheet_runs_nothing_of_the_csv(open_page: Open) -> None:
    bench = open_page(model="markup")
    bench.add(color("green"))
    bench.predict_all()
    rows = list(csv.DictReader(io.StringIO(saved(bench, "Export CSV"), newline="")))
    labels = {row["index"]: row["label"] for row in rows}
    assert labels == {"0": "<img src=x onerror=alert(1)>", "1": "'=HYPERLINK(1)", "2": '"b", c'}


def test_clearing_asks_first_and_then_forgets(open_page: Open) -> None:
    bench = with_history(open_page)
    clear = bench.page.get_by_role("button", name="Clear", exact=True)
    clear.click()
    bench.page.get_by_role("button", name="Keep it").click()
    expect(bench.entries).to_have_count(4)
    clear.click()
    bench.page.get_by_role("button", name="Clear it").click()
    expect(bench.entries).to_have_count(0)
    expect(bench.page.get_by_role("heading", name="History")).to_be_focused()
    bench.page.reload()
    expect(bench.page.locator("#history-count")).to_contain_text("Empty")
    expect(bench.entries).to_have_count(0)


def test_a_long_one_is_shown_in_parts(open_page: Open) -> None:
    bench = open_page(model="colors")
    bench.add(*[color("red")] * 30)
    bench.predict_all()
    expect(bench.entries).to_have_count(25)
    bench.page.get_by_role("button", name="Show more").click()
    expect(bench.entries).to_have_count(30)


def test_a_browser_that_keeps_nothing_has_one_until_the_page_closes(open_page: Open) -> None:
    bench = open_page()
    bench.page.add_init_script("indexedDB.open = () => { throw new DOMException('no', 'SecurityError'); }")
    bench.page.reload()
    bench.choose_model("colors")
    bench.add(color("red"))
    bench.predict_all()
    expect(bench.entries).to_have_count(1)
    expect(bench.page.locator("#history-count")).to_have_text("1 prediction, kept until this page is closed")
