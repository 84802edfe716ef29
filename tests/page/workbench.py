"""The page as a person uses it: what to press, and what is then to be seen."""

from collections.abc import Sequence
from typing import Any

from playwright.sync_api import FilePayload, Locator, Page, expect

from tests.support import bodies


def file(name: str, data: bytes, media_type: str = bodies.PNG) -> FilePayload:
    return FilePayload(name=name, mimeType=media_type, buffer=data)


def digit(number: int) -> FilePayload:
    return file(f"digit {number}.png", bodies.drawn_digit(number))


def color(name: str) -> FilePayload:
    return file(f"{name}.png", bodies.plain_color(name))


class Workbench:
    """One open page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.cards = page.locator("#cards > li")
        self.entries = page.locator("#entries > li")
        self.predict = page.locator("#predict")
        self.notice = page.locator("#notice")

    def choose_model(self, name: str, version: str = "") -> None:
        self.page.get_by_label("Model", exact=True).select_option(name)
        self.page.get_by_label("Version").select_option(version)

    def add(self, *files: FilePayload) -> None:
        before = self.cards.count()
        self.page.locator("#choose").set_input_files(list(files))
        expect(self.cards).to_have_count(before + len(files))

    def predict_all(self) -> None:
        self.predict.click()
        expect(self.predict).to_have_text("Predict again")

    def card(self, name: str) -> Locator:
        return self.cards.filter(has=self.page.get_by_role("heading", name=name, exact=True))

    def labels(self, card: Locator) -> list[tuple[str, str]]:
        """What a card says, best first: label and score as they are written."""
        names = card.locator(".labels .name").all_inner_texts()
        return list(zip(names, card.locator(".labels .score").all_inner_texts(), strict=True))

    def put(self, kind: str, files: Sequence[FilePayload]) -> None:
        """Drop files onto the page, or paste them: what a browser tells a page then."""
        payload: list[dict[str, Any]] = [
            {"name": each["name"], "type": each["mimeType"], "bytes": list(each["buffer"])} for each in files
        ]
        self.page.evaluate(
            """([kind, files]) => {
                const data = new DataTransfer();
                for (const { name, type, bytes } of files) {
                    data.items.add(new File([new Uint8Array(bytes)], name, { type }));
                }
                const options = { bubbles: true, cancelable: true };
                const event = kind === "paste"
                    ? new ClipboardEvent("paste", { ...options, clipboardData: data })
                    : new DragEvent(kind, { ...options, dataTransfer: data });
                (document.activeElement ?? document.body).dispatchEvent(event);
            }""",
            [kind, payload],
        )
