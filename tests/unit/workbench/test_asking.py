"""Many files through an asker of the test's own: order, bounds, and what one bad image does to the others."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.workbench.asking import Described, Image, Refused, Row, expand, reference, rows


class Puppet:
    """Answers with the image's bytes; refuses a request that holds `bad`. Later images are answered sooner."""

    described = Described("puppet", 1, "multiclass", ("a",))

    def __init__(self) -> None:
        self.in_flight = 0
        self.most_in_flight = 0
        self.requests = 0

    async def ask(self, images: Sequence[Image], top_k: int) -> list[Row]:
        self.requests += 1
        self.in_flight += len(images)
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        for _ in range(20 - self.requests % 20):
            await asyncio.sleep(0)
        self.in_flight -= len(images)
        if any(data == b"bad" for _, data in images):
            raise Refused("no")
        return [{"predictions": [data.decode()]} for _, data in images]


def files_of(folder: Path, count: int) -> list[Path]:
    for place in range(count):
        (folder / f"{place:03d}.png").write_bytes(str(place).encode())
    return list(expand([folder]))


async def all_rows(asker: Puppet, files: Sequence[Path]) -> list[Row]:
    async with aclosing(rows(asker, files, 5)) as found:
        return [row async for row in found]


async def test_rows_come_in_the_order_of_the_files_with_a_bounded_number_in_flight(tmp_path: Path) -> None:
    puppet, files = Puppet(), files_of(tmp_path, 200)
    found = await all_rows(puppet, files)
    assert found == [{"file": str(file), "predictions": [str(at)]} for at, file in enumerate(files)]
    assert 4 < puppet.most_in_flight <= 32


async def test_image_that_spoils_its_request_spoils_no_other(tmp_path: Path) -> None:
    files = files_of(tmp_path, 10)
    files[5].write_bytes(b"bad")
    found = await all_rows(Puppet(), files)
    assert [row for row in found if "error" in row] == [{"file": str(files[5]), "error": "no"}]


async def test_file_that_cannot_be_read_is_a_row_of_its_own(tmp_path: Path) -> None:
    files = files_of(tmp_path, 6)
    files[2].unlink()
    found = await all_rows(Puppet(), files)
    assert [row.get("error") for row in found] == [None, None, "No such file or directory", None, None, None]


async def test_large_files_do_not_share_a_request(tmp_path: Path) -> None:
    files = files_of(tmp_path, 4)
    for file in files:
        file.write_bytes(b"1" * 3_000_000)
    puppet = Puppet()
    await all_rows(puppet, files)
    assert puppet.requests == 4


async def test_leaving_early_ends_what_is_in_flight(tmp_path: Path) -> None:
    before = len(asyncio.all_tasks())
    async with aclosing(rows(Puppet(), files_of(tmp_path, 100), 5)) as found:
        async for _ in found:
            break
    assert len(asyncio.all_tasks()) == before


@pytest.mark.parametrize("text", ["", "/1", "a/b", "a/", "a/-1"])
def test_reference_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="MODEL/VERSION"):
        reference(text)


def test_reference_may_name_a_version() -> None:
    assert [str(reference(text)) for text in ("a", "a/12")] == ["a", "a/12"]
