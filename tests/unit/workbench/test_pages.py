"""Pages of reports: other people's text stays text, pictures are inside, charts have round ticks."""

import re
from pathlib import Path

import pytest

from service.workbench import pages
from tests.support import tiny_models

EVIL = '<script>alert("x")</script>'


def test_labels_and_file_names_stay_text() -> None:
    parts = [
        pages.section(EVIL, pages.table((EVIL,), [(EVIL,)]), note=EVIL),
        pages.matrix([EVIL], [[1]]),
        pages.shots([pages.shot(EVIL, EVIL, EVIL)]),
        pages.figures([(EVIL, EVIL)]),
        pages.bars(EVIL, [0.0, 1.0], [1.0], EVIL, EVIL),
    ]
    assert "<script" not in pages.page(EVIL, EVIL, parts)


def test_picture_is_inside_the_page_and_a_broken_one_leaves_its_place(tmp_path: Path) -> None:
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    good.write_bytes(tiny_models.picture("red"))
    broken.write_bytes(b"no picture")
    assert 'src="data:image/png;base64,' in pages.shot(str(good), "a", "b")
    assert '<div class="none">' in pages.shot(str(broken), "a", "b")


def test_large_picture_becomes_small(tmp_path: Path) -> None:
    large = tmp_path / "large.jpg"
    large.write_bytes(tiny_models.cv2.imencode(".jpg", tiny_models.np.zeros((2000, 3000, 3), "uint8"))[1].tobytes())
    assert len(pages.shot(str(large), "a", "b")) < 4000


@pytest.mark.parametrize(("begin", "end"), [(0.0, 1.0), (0.0, 0.013), (0.0, 97.0), (0.0, 4321.0), (3.0, 3.5)])
def test_ticks_are_few_round_and_inside(begin: float, end: float) -> None:
    ticks = pages._ticks(begin, end)
    assert 4 <= len(ticks) <= 10
    assert all(begin <= tick <= end for tick in ticks)
    assert all(len(re.sub(r"[.0]", "", f"{tick:g}")) <= 3 for tick in ticks)
