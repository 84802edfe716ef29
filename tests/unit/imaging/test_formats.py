"""Which bytes are which format, and which are none that is enabled."""

import pytest
from PIL import Image

from service.errors import MediaTypeMismatch, UnsupportedMediaType
from service.imaging.formats import FORMATS, media_types, sniff
from service.imaging.spec import ImageLimits
from tests.support import images

DEFAULT = ImageLimits().formats
JPEG = images.encoded(images.pattern(9, 9), "JPEG")
PNG = images.encoded(images.pattern(9, 9), "PNG")


def test_jpeg_png_and_webp_are_what_is_enabled_by_default() -> None:
    assert DEFAULT == ("jpeg", "png", "webp")


@pytest.mark.parametrize("name", images.FOREIGN)
def test_what_is_no_known_image_is_unsupported_whatever_it_was_declared_as(name: str) -> None:
    for declared in (None, "image/jpeg", "application/octet-stream"):
        with pytest.raises(UnsupportedMediaType, match="not an image of a known format") as caught:
            sniff(images.FOREIGN[name](), tuple(FORMATS), declared)
        assert caught.value.code == "unsupported_media_type"


@pytest.mark.parametrize("name", images.FOREIGN)
def test_no_parser_is_entered_for_what_is_no_known_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = images.FOREIGN[name]()
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow was asked"))
    with pytest.raises(UnsupportedMediaType):
        images.prepared(data, images.spec(), ImageLimits(formats=tuple(FORMATS)))


def test_pillow_is_asked_for_one_format_only_and_never_to_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    really_open = Image.open

    def recording(*args: object, **kwargs: object) -> Image.Image:
        asked.append(kwargs.get("formats"))
        return really_open(*args, **kwargs)

    monkeypatch.setattr(Image, "open", recording)
    images.prepared(PNG, images.spec(decode="exact"))  # by its class
    images.prepared(JPEG, images.spec(decode="exact"))
    images.prepared(images.encoded(images.pattern(16, 16), "WEBP"), images.spec(decode="exact"))
    assert asked == [["JPEG"], ["WEBP"]]


@pytest.mark.parametrize("name", sorted(set(FORMATS) - set(DEFAULT)))
def test_a_known_format_that_is_off_is_named_and_refused(name: str) -> None:
    data = images.encoded(images.pattern(16, 16), FORMATS[name].pillow_name)
    for declared in (None, FORMATS[name].media_types[0], "image/png"):
        with pytest.raises(UnsupportedMediaType, match=f"{name.upper()}, which is not enabled") as caught:
            sniff(data, DEFAULT, declared)
        assert not isinstance(caught.value, MediaTypeMismatch)


def test_the_refusal_says_what_to_send() -> None:
    for formats, words in ((DEFAULT, "JPEG, PNG or WEBP"), (("png",), "send PNG"), (("webp", "png"), "PNG or WEBP")):
        with pytest.raises(UnsupportedMediaType, match=words):
            sniff(b"no picture at all", formats)


@pytest.mark.parametrize("declared", ["image/png", "image/webp", "image/gif", "image/svg+xml", "image/*", "image/"])
def test_an_image_declared_as_another_image_type_is_a_mismatch(declared: str) -> None:
    with pytest.raises(MediaTypeMismatch) as caught:
        sniff(JPEG, DEFAULT, declared)
    assert caught.value.code == "media_type_mismatch"


@pytest.mark.parametrize("declared", [None, "", "image/jpeg", "image/jpg", "image/pjpeg", "application/octet-stream"])
def test_a_right_or_silent_declaration_is_accepted(declared: str | None) -> None:
    assert sniff(JPEG, DEFAULT, declared).name == "jpeg"


def test_media_types_are_those_of_the_enabled_formats() -> None:
    assert media_types(("png", "webp")) == {"image/png", "image/webp"}
    assert "image/gif" not in media_types(DEFAULT)
    assert "image/gif" in media_types((*DEFAULT, "gif"))


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8", b"\x89PNG", b"RIFF\0\0\0\0WEB", b"GIF8"])
def test_part_of_a_signature_is_no_image(data: bytes) -> None:
    with pytest.raises(UnsupportedMediaType):
        sniff(data, tuple(FORMATS))
