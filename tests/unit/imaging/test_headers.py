"""What a file says of itself: sizes, Exif orientation in all its spellings, and bounds on how long we listen."""

import io
import struct
import tracemalloc

import pytest
from PIL import Image

from service.errors import InvalidImage
from service.imaging.decode import decode
from service.imaging.headers import ImageHeader, exif_orientation, read_jpeg, read_png, read_webp
from tests.support import images

PICTURE = images.pattern(21, 13)
JPEG = images.encoded(PICTURE, "JPEG")
PNG = images.encoded(PICTURE, "PNG")
NONSENSE = [0, 9, 65_535]


def test_displayed_size_is_turned_from_orientation_5_on() -> None:
    assert [ImageHeader("png", 3, 2, orientation).displayed_size for orientation in (1, 4, 5, 8)] == [
        (3, 2),
        (3, 2),
        (2, 3),
        (2, 3),
    ]


# Exif


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_read_in_both_byte_orders_and_all_integer_types(order: str, kind: int, orientation: int) -> None:
    block = images.exif(orientation, order=order, kind=kind, entries_before=3)
    assert exif_orientation(block) == orientation
    assert exif_orientation(b"Exif\0\0" + block) == orientation


@pytest.mark.parametrize("orientation", NONSENSE)
def test_an_orientation_out_of_range_is_upright(orientation: int) -> None:
    assert exif_orientation(images.exif(orientation)) == 1


@pytest.mark.parametrize(("kind", "count"), [(2, 1), (5, 1), (7, 1), (12, 1), (99, 1), (3, 2), (3, 0)])
def test_an_orientation_of_a_wrong_type_or_count_is_upright(kind: int, count: int) -> None:
    assert exif_orientation(images.exif(6, kind=kind, count=count)) == 1


def test_an_exif_block_that_is_cut_short_is_upright_and_never_an_error() -> None:
    block = images.exif(6, entries_before=2)
    assert {exif_orientation(block[:length]) for length in range(len(block) - 7)} == {1}
    assert exif_orientation(block) == 6


def test_an_exif_directory_that_points_nowhere_or_at_itself_ends() -> None:
    assert exif_orientation(images.exif_loop()) == 1
    assert exif_orientation(b"II*\0" + struct.pack("<I", 2**32 - 1) + bytes(40)) == 1


def test_only_the_first_entries_of_an_exif_directory_are_looked_at() -> None:
    assert exif_orientation(images.exif(6, entries_before=511)) == 6
    assert exif_orientation(images.exif(6, entries_before=5000)) == 1


# JPEG


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}])
def test_jpeg_sides_are_read(options: dict[str, int]) -> None:
    header = read_jpeg(images.encoded(PICTURE, "JPEG", **options))
    assert (header.format, header.width, header.height, header.orientation) == ("jpeg", 21, 13, 1)


def test_only_a_jpeg_of_8_bits_and_one_or_three_components_is_plain() -> None:
    assert read_jpeg(JPEG).is_plain
    assert read_jpeg(images.encoded(PICTURE.convert("L"), "JPEG")).is_plain
    assert not read_jpeg(images.cmyk_jpeg(PICTURE)).is_plain
    assert not read_jpeg(images.ycck_jpeg(PICTURE)).is_plain
    twelve_bits = JPEG.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c")
    assert not read_jpeg(twelve_bits).is_plain


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_orientation_is_read(orientation: int) -> None:
    data = images.displaying(PICTURE, orientation, "JPEG")
    assert read_jpeg(data).orientation == orientation
    assert read_jpeg(data).displayed_size == (21, 13)


def test_jpeg_orientation_is_found_behind_other_segments() -> None:
    data = images.with_segment(images.displaying(PICTURE, 6, "JPEG"), 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")
    assert read_jpeg(images.with_segment(data, 0xE2, bytes(60_000))).orientation == 6


def test_a_thumbnail_inside_exif_is_not_taken_for_the_picture() -> None:
    thumbnail = images.encoded(images.pattern(160, 120), "JPEG")
    header = read_jpeg(images.with_segment(JPEG, 0xE1, b"Exif\0\0" + images.exif(6) + thumbnail))
    assert (header.width, header.height, header.orientation) == (21, 13, 6)


@pytest.mark.parametrize("between", [b"\xff", b"\xff\xff\xff\xff", b"\0garbage", b"\xff\x00", b"\xff\x01", b"\xff\xd0"])
def test_fill_bytes_garbage_and_bare_markers_between_segments_are_passed_over(between: bytes) -> None:
    header = read_jpeg(JPEG[:2] + between + JPEG[2:])
    assert (header.width, header.height) == (21, 13)


def test_a_jpeg_without_frame_header_is_invalid() -> None:
    for data in (b"\xff\xd8\xff", images.without_segments(JPEG, 0xC0), JPEG[: JPEG.index(b"\xff\xc0") + 8]):
        with pytest.raises(InvalidImage, match="no frame header"):
            read_jpeg(data)


@pytest.mark.parametrize("length", [0, 1])
def test_a_jpeg_segment_of_impossible_length_is_invalid(length: int) -> None:
    with pytest.raises(InvalidImage, match="impossible length"):
        read_jpeg(JPEG[:2] + b"\xff\xfe" + struct.pack(">H", length) + JPEG[2:])


@pytest.mark.parametrize(("width", "height"), [(0, 13), (21, 0)])
def test_a_jpeg_without_extent_is_invalid(width: int, height: int) -> None:
    with pytest.raises(InvalidImage):
        read_jpeg(images.with_frame_size(JPEG, width, height))


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_of_thousands_of_scans_is_invalid(progressive: bool) -> None:
    """Each scan costs a pass over all blocks: 34 kB of 3,000 scans kept a core busy for 38 s at 100 megapixels."""
    ordinary = read_jpeg(images.jpeg_of_many_scans(64, 48, 12, progressive=progressive))
    assert (ordinary.width, ordinary.height) == (64, 48)
    with pytest.raises(InvalidImage, match="scans"):
        read_jpeg(images.jpeg_of_many_scans(64, 48, 3000, progressive=progressive))


@pytest.mark.parametrize("progressive", [True, False])
def test_bytes_that_only_look_like_scans_do_not_count(progressive: bool) -> None:
    """Behind the end of the picture, and inside a segment."""
    data = images.encoded(PICTURE, "JPEG", progressive=progressive)
    scans = images.segment(0xDA, bytes(10)) * 3000
    assert read_jpeg(data + scans).width == 21
    assert read_jpeg(images.with_segment(data, 0xFE, scans)).width == 21


def test_scans_behind_the_only_one_of_a_sequential_jpeg_are_left_to_the_decoder() -> None:
    """It stops after a scan that holds all components; counting the others took longer than all else here."""
    data = images.encoded(PICTURE, "JPEG")
    scans = (images.segment(0xDA, bytes([1, 1, 0, 0, 63, 0])) + b"\0") * 3000
    more = data[:-2] + scans + data[-2:]
    assert read_jpeg(more) == read_jpeg(data)
    with pytest.raises(InvalidImage):
        decode(more, read_jpeg(more), gray=False, halvings=0, fast=False, background=(0, 0, 0))


def test_a_jpeg_of_endless_segments_is_given_up() -> None:
    with pytest.raises(InvalidImage):
        read_jpeg(JPEG[:2] + images.segment(0xFE, b"") * 100_000 + JPEG[2:])


# PNG


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_sides_are_read(mode: str) -> None:
    header = read_png(images.encoded(Image.new(mode, (21, 13)), "PNG"))
    assert (header.format, header.width, header.height, header.orientation) == ("png", 21, 13, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_png_orientation_is_read(orientation: int) -> None:
    assert read_png(images.displaying(PICTURE, orientation, "PNG")).orientation == orientation


def test_png_orientation_is_read_behind_the_pixels_too() -> None:
    *chunks, _ = images.png_chunks(PNG)
    assert read_png(images.png_of(*chunks, images.chunk(b"eXIf", images.exif(8)))).orientation == 8


def test_a_png_without_its_last_chunk_is_truncated() -> None:
    for cut in (12, 4, 1):
        with pytest.raises(InvalidImage, match="truncated"):
            read_png(PNG[:-cut])


def test_a_png_without_header_chunk_is_invalid() -> None:
    for data in (images.PNG_SIGNATURE, PNG[:32], images.png_of(images.chunk(b"IDAT", bytes(20)))):
        with pytest.raises(InvalidImage, match="no header chunk"):
            read_png(data)


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0)])
def test_a_png_without_extent_is_invalid(width: int, height: int) -> None:
    with pytest.raises(InvalidImage, match=f"{width}x{height}"):
        read_png(images.png_of(images.png_header(width, height)))


def test_a_png_of_endless_chunks_is_given_up() -> None:
    assert read_png(images.png_with_many_chunks(PICTURE, 4000)).width == 21
    with pytest.raises(InvalidImage, match="too many chunks"):
        read_png(images.png_with_many_chunks(PICTURE, 5000))


def test_compressed_metadata_is_never_expanded_to_read_a_header() -> None:
    for data in (images.png_with_text_bomb(PICTURE), images.png_with_profile_bomb(PICTURE)):
        tracemalloc.start()
        try:
            assert read_png(data).width == 21
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()


# WebP


@pytest.mark.parametrize("options", [{"quality": 80}, {"lossless": True}])
def test_webp_sides_are_read_lossy_and_lossless(options: dict[str, int]) -> None:
    for width, height in ((21, 13), (1, 1), (300, 2)):
        header = read_webp(images.encoded(images.pattern(width, height), "WEBP", **options))
        assert (header.format, header.width, header.height, header.orientation) == ("webp", width, height, 1)


def test_extended_webp_sides_are_those_of_the_canvas() -> None:
    with_alpha = images.encoded(PICTURE.convert("RGBA"), "WEBP", exif=b"Exif\0\0" + images.exif(1))
    assert with_alpha[12:16] == b"VP8X"
    assert (read_webp(with_alpha).width, read_webp(with_alpha).height) == (21, 13)
    assert read_webp(images.webp_claiming(16_383, 12_000)).displayed_size == (16_383, 12_000)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [{"quality": 80}, {"lossless": True}])
def test_webp_orientation_is_read(orientation: int, options: dict[str, int]) -> None:
    data = images.displaying(PICTURE, orientation, "WEBP", **options)
    assert read_webp(data).orientation == orientation
    assert read_webp(data).displayed_size == (21, 13)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:29],
        lambda data: data[:23] + b"\0\0\0" + data[26:],
        lambda data: data[:12] + b"ALPH" + data[16:],
    ],
    ids=["cut", "no key frame", "no image chunk"],
)
def test_a_damaged_webp_header_is_invalid(damage) -> None:
    lossy = images.encoded(PICTURE, "WEBP", quality=80)
    assert lossy[12:16] == b"VP8 "
    with pytest.raises(InvalidImage):
        read_webp(damage(lossy))


def test_a_damaged_lossless_webp_header_is_invalid() -> None:
    lossless = images.encoded(PICTURE, "WEBP", lossless=True)
    with pytest.raises(InvalidImage, match="lossless"):
        read_webp(lossless[:20] + b"\0" + lossless[21:])


def test_a_webp_of_endless_chunks_is_given_up() -> None:
    data = images.webp_claiming(21, 13)
    assert read_webp(data + b"abcd\0\0\0\0" * 4000).width == 21
    with pytest.raises(InvalidImage, match="too many chunks"):
        read_webp(data + b"abcd\0\0\0\0" * 5000)


def test_header_readers_agree_with_pillow() -> None:
    for reader, data in ((read_jpeg, JPEG), (read_png, PNG), (read_webp, images.encoded(PICTURE, "WEBP"))):
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == reader(data).displayed_size
