"""Labelled photographs that Debian packages carry: what `imagenet_int8` is calibrated with and judged by.

Two packages for children's programs hold some hundred photographs of things that the 1,000 classes of ImageNet know.
Their names say what is on them; `RIGHT` says which classes are right for a name. Photographs of other things serve
for calibration, where labels do not matter. Kept in `$FOVEA_RECIPES_CACHE/photographs`; needs `apt-get` and `dpkg-deb`.
"""

import csv
import io
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from idx_datasets import cache_folder
from PIL import Image

PACKAGES = ("gcompris-qt-data", "tuxpaint-stamps-default")
SMALLEST_SIDE = 96  # smaller ones are icons
DRAWN = (  # and what else is no photograph
    "cartoon",
    "/symbols/",
    "/flags/",
    "/clothes/t_",
    "words_sample",
    "paintings",
    "Gogh",
    "PereTanguy",
    "dAuvers",
    "babyshapes",
    "braille",
    "planets",
    "/moon/",
    "grave",
    "dreydl",
    "roadsigns",
)

# what a file is called, without numbers and signs -> places in ImageNet's output
RIGHT: dict[str, tuple[int, ...]] = {
    "frog": (30, 31, 32),
    "turtle": (33, 34, 35, 36, 37),
    "iguana": (39,),
    "lizard": tuple(range(38, 49)),
    "chameleon": (40, 47),
    "chamaeleon": (40, 47),
    "dragon": (48,),
    "crocodile": (49, 50),
    "snake": tuple(range(52, 69)),
    "spider": tuple(range(72, 78)),
    "rooster": (7, 8),
    "hen": (7, 8),
    "chicken": (7, 8),
    "chicken profile": (7, 8),
    "ostrich": (9,),
    "magpie": (18,),
    "vulture": (23,),
    "owl": (24,),
    "peacock": (84,),
    "scarlet macaw": (88,),
    "rainbow lorikeet": (90,),
    "toucan": (96,),
    "tucan": (96,),
    "duck": (97, 98, 99),
    "drake": (97, 98),
    "gander": (99,),
    "gosling": (97, 98, 99),
    "elephant": (101, 385, 386),
    "echidna": (102,),
    "koala": (105,),
    "wombat": (106,),
    "kangaroo": (104,),
    "snail": (113,),
    "brown slug": (114,),
    "crab": (118, 119, 120, 121, 125),
    "lobster": (122, 123, 124),
    "spoonbills": (129,),
    "pink flamingo": (130,),
    "heron": (131, 132, 134),
    "heron greatblue": (131, 132, 134),
    "crowned crane": (134,),
    "pelican": (144,),
    "penguin": (145,),
    "little penguin": (145,),
    "magellanic penguin": (145,),
    "whale": (147, 148),
    "orca": (148,),
    "sea lion": (150,),
    "dog": tuple(range(151, 269)),
    "wolf": tuple(range(269, 273)),
    "dingo": (273, 274),
    "fox": tuple(range(277, 281)),
    "cat": tuple(range(281, 286)),
    "kitten": tuple(range(281, 286)),
    "jaguar": (288, 290),
    "lion": (291,),
    "tiger": (292,),
    "tiger sumatran": (292,),
    "cheetah": (293,),
    "bear": (294, 295, 296, 297),
    "european bear": (294, 295, 296, 297),
    "polar bear": (296,),
    "meerkats": (299,),
    "beetle": tuple(range(300, 308)),
    "fly": (308,),
    "flies": (308,),
    "bee": (309,),
    "hornet": (309,),
    "hoverfly": (308, 309),
    "grasshopper": (311, 312),
    "mantis": (315,),
    "butterfly": tuple(range(321, 327)),
    "rabbit": (330, 331, 332),
    "rabbit little": (330, 331, 332),
    "hedgehog": (334,),
    "squirrel": (335,),
    "marmot": (336,),
    "beaver": (337,),
    "horse": (339,),
    "zebra": (340,),
    "pig": (341,),
    "pig golden": (341,),
    "wildboar": (342,),
    "hippopotamus": (344,),
    "bull": (345, 346, 347),
    "cow": (345, 346),
    "cow white": (345, 346),
    "calf": (345, 346),
    "bison": (347,),
    "ram": (348, 349),
    "sheep": (348, 349),
    "sheep lamb": (348, 349),
    "nubian ibex": (349, 350),
    "mountaingoat": (348, 349, 350),
    "goat": (348, 349, 350),
    "camel": (354,),
    "camels": (354,),
    "dromedary": (354,),
    "alpaca": (355,),
    "ferret": (356, 357, 358, 359),
    "otter": (360,),
    "badger": (362,),
    "gorilla": (366,),
    "chimp": (367,),
    "gibbon": (368,),
    "macaque": (370, 371, 372, 373),
    "long nosed monkey": (376,),
    "lemur": (383, 384),
    "panda": (388,),
    "red panda": (387,),
    "shark": (2, 3, 4),
    "fish": (0, 1, *range(389, 398)),
    "stripedfish": (0, 1, *range(389, 398)),
    "coraltrout": (0, 1, *range(389, 398)),
    "moonwrasse": (0, 1, *range(389, 398)),
    "clownfish": (393,),
    "lionfish": (396,),
    "apple": (948,),
    "apple granny smith": (948,),
    "apple green": (948,),
    "apple red": (948,),
    "apple fuji": (948,),
    "apple sierra beauty": (948,),
    "grannysmith": (948,),
    "strawberry": (949,),
    "orange": (950,),
    "orange seville": (950,),
    "mandarine": (950,),
    "sliced orange": (950,),
    "lemon": (951,),
    "sliced lime": (951,),
    "pineapple": (953,),
    "banana": (954,),
    "cherimoya": (956,),
    "pomegranate": (957,),
    "broccoli": (937,),
    "pattypan squash": (939, 940, 941, 942),
    "pumpkin small": (607, 940, 941, 942),
    "pepper": (945,),
    "yellowpepper": (945,),
    "chilepepper": (945,),
    "mushroom": (947, 992, 997),
    "cep": (947, 992, 997),
    "corn": (987, 998),
    "pizza": (963,),
    "binoculars": (447,),
    "camera mm": (732, 759),
    "trumpet": (513,),
    "cello": (486, 889),
    "violin": (486, 889),
    "guitar": (402, 420, 546),
    "guitar classical": (402,),
    "guitar electric": (546,),
    "guitar electric bass": (546,),
    "drumkit": (541,),
    "drum tomtom floor": (541,),
    "bassoon": (432,),
    "mug": (504, 968),
    "cup": (504, 968),
    "pitcher small": (725, 899),
    "teapot": (849,),
    "garbagecan": (412,),
    "wheelie bin": (412,),
    "toilet": (861,),
    "hammer": (587,),
    "mallet metal": (587,),
    "spade": (792,),
    "screwdriver": (784,),
    "stethoscope": (823,),
    "syringe": (845,),
    "candle": (470,),
    "holiday candle": (470,),
    "stocking": (496,),
    "basketball": (430,),
    "soccer": (805,),
    "tennis ball": (852,),
    "tennis racket": (752,),
    "baseball": (429,),
    "volleyball": (890,),
    "chair": (423, 559, 765, 857),
    "pillow": (721,),
    "spoons": (910, 813),
    "plate": (923,),
    "pan": (567,),
    "bucket": (463,),
    "weighingmachine": (778,),
    "erasers": (767,),
    "pencil": (418, 749),
    "sombrero": (808,),
    "blue fedora": (515,),
    "green fedora": (515,),
    "dam": (525,),
    "solar": (807,),
    "firetruck": (555,),
    "garbagetruck": (569,),
    "indycar": (751,),
    "sportscar": (817, 511),
    "sedan police": (734, 656),
    "wheel tractor": (866,),
    "balloon": (417,),
    "pink tricycle": (870,),
    "green korean bus": (779, 874, 654),
    "neuschwansteincastle": (483, 698),
    "neuschwanstein background": (483, 698),
    "eilandonancastle background": (483,),
    "egeskovslotspejling background": (483, 698),
    "chenonceau background": (483, 698, 888),
    "chateaudechenonceau": (483, 698, 888),
    "chateaudechambord": (483, 698),
    "citedecarcassonne": (483,),
    "montstmichel": (483, 497, 663),
    "schwerinpalace": (483, 698),
    "mysorepalace": (668, 698),
    "tajmahal": (538, 668, 698),
    "tajmahal background": (538, 668, 698),
    "goldentemple": (538, 668, 698, 832),
    "greatstupa": (538, 832),
    "arcdetriomphe": (873,),
    "brandenburggate": (873,),
    "gatewayofindia": (668, 873),
    "indiagate": (873,),
    "cathedral": (497, 538, 663),
    "reimscathedral": (497, 663),
    "wormscathedral": (497, 538, 663),
    "berlincathedral": (497, 538, 663, 698),
    "pontdugard": (888,),
    "towerbridgelondon background": (839, 888),
}


def photographs() -> tuple[Path, Path]:
    """A folder of photographs to calibrate with, and a CSV file of others with the classes that are right for them."""
    folder = cache_folder() / "photographs"
    table = folder / "labelled.csv"
    if not table.exists():
        draft = folder.with_name(".photographs-draft")
        shutil.rmtree(draft, ignore_errors=True)
        _write(draft)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    return folder / "other", table


def _write(folder: Path) -> None:
    (folder / "other").mkdir(parents=True)
    (folder / "labelled").mkdir()
    with (folder / "labelled.csv").open("w", encoding="utf-8", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(("file", "label"))
        for number, (name, data) in enumerate(_packaged()):
            path = Path(name)
            right = RIGHT.get(_plain(path.stem))
            file = f"{number:04d}-{path.name}"
            (folder / ("labelled" if right else "other") / file).write_bytes(data)
            if right:
                rows.writerow((f"labelled/{file}", "|".join(map(str, right))))


def _plain(stem: str) -> str:
    return " ".join(re.split(r"[\W\d_]+", stem.lower())).strip().removesuffix(" mirror")


def _packaged() -> Iterator[tuple[str, bytes]]:
    """Every photograph of the packages, in the order of their names."""
    with tempfile.TemporaryDirectory() as scratch:
        for package in PACKAGES:
            subprocess.run(["apt-get", "download", package], cwd=scratch, check=True)
            (file,) = Path(scratch).glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "--extract", file, f"{scratch}/{package}"], check=True)
        for file in sorted(Path(scratch).rglob("*")):
            if file.suffix == ".rcc":
                yield from (
                    (name, data) for name, data in sorted(_resources(file.read_bytes())) if _is_photograph(name, data)
                )
            elif (
                file.suffix == ".png" and "stamps" in str(file) and _is_photograph(str(file), data := file.read_bytes())
            ):
                yield str(file), data


def _is_photograph(name: str, data: bytes) -> bool:
    if any(drawn in name for drawn in DRAWN) or Path(name).suffix not in (".webp", ".jpg", ".png"):
        return False
    with Image.open(io.BytesIO(data)) as image:
        return min(image.size) >= SMALLEST_SIDE


def _resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The files in a binary resource of Qt: a header, a tree of nodes, names in UTF-16, and data with its length."""
    version, tree, blobs, names = struct.unpack(">4I", data[4:20])
    node_bytes = 22 if version >= 2 else 14

    def name_at(offset: int) -> str:
        (length,) = struct.unpack(">H", data[names + offset : names + offset + 2])
        start = names + offset + 6  # after the length and a hash
        return data[start : start + 2 * length].decode("utf-16-be")

    def below(node: int, path: str) -> Iterator[tuple[str, bytes]]:
        start = tree + node * node_bytes
        name, flags = struct.unpack(">IH", data[start : start + 6])
        path = f"{path}/{name_at(name)}" if node else path
        if flags & 2:  # a folder
            count, first = struct.unpack(">II", data[start + 6 : start + 14])
            for child in range(first, first + count):
                yield from below(child, path)
        elif not flags:  # not compressed, as pictures are kept
            (offset,) = struct.unpack(">I", data[start + 10 : start + 14])
            (length,) = struct.unpack(">I", data[blobs + offset : blobs + offset + 4])
            yield path, data[blobs + offset + 4 : blobs + offset + 4 + length]

    yield from below(0, "")
