"""Photos with ImageNet labels: the stamps of Tux Paint, cut out and named after what they show.

Which classes of ImageNet a file name means stands in `CLASSES`, made from the names of files and classes alone, before
any model saw a picture. Where ImageNet knows only kinds of a thing (tree frog, bullfrog), each kind is right. Drawings,
and photos of what ImageNet has no class for, serve as unlabelled pictures. GPL-2: fetched, never committed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.fetch import CACHE, Package, fetch

STAMPS = Package(
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "tuxpaint-stamps-default_2022.06.04-1_all.deb",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
)
NAMES = Package(
    "darknet",
    "0.0.0+git20180914.61c9d02e-2+b4",
    "darknet_0.0.0+git20180914.61c9d02e-2+b4_amd64.deb",
    "9ca14d36112d242a782bfed4104fa5adcd2ae8bc599ab610f42eb609ee125a01",
)
SIDE, MARGIN, NUM_CLASSES = 224, 1.15, 1000


@dataclass(frozen=True)
class Scale:
    """How a network takes pixels of 0 to 1: less the mean, over the standard deviation, for red, green and blue."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image) -> Tensor:
        """[3, H, W]."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]


IMAGENET = Scale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

FROG = "bullfrog tree_frog tailed_frog"
HERON = "little_blue_heron American_egret"
ELEPHANT = "African_elephant Indian_elephant tusker"
FOX = "red_fox kit_fox grey_fox Arctic_fox"
RABBIT = "wood_rabbit hare Angora"
BEAR = "brown_bear American_black_bear"
LOBSTER = "American_lobster spiny_lobster"
# file (without .png) -> classes, with _ for a space
CLASSES = {
    "animals/amphibians": {"frog": FROG, "frog-1": FROG},
    "animals/birds": {
        "chicken_profile": "hen cock",
        "crowned_crane": "crane",
        "drake": "drake",
        "duck": "drake",
        "gander": "goose",
        "heron_greatblue": HERON,
        "heron_greatblue_flying": HERON,
        "hen": "hen",
        "little-penguin": "king_penguin",
        "magellanic_penguin": "king_penguin",
        "magpie": "magpie",
        "ostrich": "ostrich",
        "owl": "great_grey_owl",
        "peacock": "peacock",
        "pelican": "pelican",
        "penguin": "king_penguin",
        "pink_flamingo": "flamingo",
        "rainbow-lorikeet": "lorikeet",
        "rooster": "cock",
        "tucan": "toucan",
        "vulture": "vulture",
    },
    "animals/fish": {"clownfish": "anemone_fish", "lionfish": "lionfish", "lobster": LOBSTER},
    "animals/insects": {
        "Brown_slug": "slug",
        "Woodlouse": "isopod",
        "bee": "bee",
        "fly": "fly",
        "grasshopper": "grasshopper",
        "hoverfly": "fly",
        "mantis": "mantis",
    },
    "animals/lizards": {"iguana": "common_iguana"},
    "animals/mammals": {
        "apes/chimp": "chimpanzee",
        "apes/gorilla": "gorilla",
        "aquatic/orca": "killer_whale",
        "aquatic/otter": "otter",
        "aquatic/sea_lion": "sea_lion",
        "aquatic/whale": "grey_whale",
        "badger": "badger",
        "bears/bear": BEAR,
        "bears/european-bear": BEAR,
        "bears/toys/edward_bear": "teddy",
        "bovines/bison": "bison",
        "bovines/bull": "ox",
        "bovines/cow": "ox",
        "bovines/cow_white": "ox",
        "bovines/ram": "ram",
        "bovines/sheep": "ram",
        "bovines/zebu": "ox",
        "camel/camel": "Arabian_camel",
        "camel/dromedary": "Arabian_camel",
        "cats/lion": "lion",
        "cats/lion-2": "lion",
        "cats/tiger": "tiger",
        "cats/tiger_sumatran": "tiger",
        "dogs/dingo": "dingo",
        "dogs/fox": FOX,
        "echidna": "echidna",
        "elephant": ELEPHANT,
        "equines/horse": "sorrel",
        "equines/zebra": "zebra",
        "ferret": "black-footed_ferret polecat",
        "hedgehog": "porcupine",
        "hippopotamus": "hippopotamus",
        "pig": "hog",
        "pig_golden": "hog",
        "pig_golden2": "hog",
        "rabbit_little": RABBIT,
        "rodents/beaver": "beaver",
        "rodents/marmot": "marmot",
        "rodents/rabbit": RABBIT,
        "rodents/rabbit-2": RABBIT,
        "rodents/squirrel": "fox_squirrel",
        "wildboar": "wild_boar",
    },
    "animals/marsupials": {"kangaroo": "wallaby", "koala": "koala", "wombat": "wombat"},
    "clothes": {
        "hats/sombrero": "sombrero",
        "t_pants": "jean",
        "t_poloshirt": "jersey",
        "t_sock": "sock",
        "t_tshirt": "jersey",
    },
    "food": {
        "fruit/Strawberry2": "strawberry",
        "fruit/apple_granny_smith": "Granny_Smith",
        "fruit/apple_green": "Granny_Smith",
        "fruit/banana": "banana",
        "fruit/cherimoya": "custard_apple",
        "fruit/lemon": "lemon",
        "fruit/mandarine": "orange",
        "fruit/orange": "orange",
        "fruit/orange_seville": "orange",
        "fruit/pineapple": "pineapple",
        "fruit/pomegranate": "pomegranate",
        "fruit/sliced_orange": "orange",
        "fruit/strawberry": "strawberry",
        "pizza": "pizza",
        "vegetables/broccoli": "broccoli",
        "vegetables/corn": "corn ear",
        "vegetables/mushroom": "mushroom agaric",
        "vegetables/pepper": "bell_pepper",
        "vegetables/yellowpepper": "bell_pepper",
    },
    "hobbies": {
        "binoculars": "binoculars",
        "camera_35mm": "reflex_camera",
        "music/brass/trumpet": "cornet",
        "music/percussion/drum_tomtom_floor": "drum",
        "music/percussion/drumkit": "drum",
        "music/string/cello": "cello",
        "music/string/guitar2": "acoustic_guitar electric_guitar",
        "music/string/guitar_classical": "acoustic_guitar",
        "music/string/guitar_electric": "electric_guitar",
        "music/string/guitar_electric_bass": "electric_guitar",
        "music/string/violin": "violin",
        "music/wind/bassoon": "bassoon",
    },
    "household": {
        "dishes/mug": "coffee_mug cup",
        "dishes/pitcher_small": "pitcher",
        "dishes/teapot": "teapot",
        "garbagecan": "ashcan",
        "toilet": "toilet_seat",
        "tools/hammer": "hammer",
        "tools/paintbrush_large": "paintbrush",
        "tools/spade": "shovel",
        "tools/toolbox": "carpenter's_kit",
        "wheelie_bin": "ashcan",
    },
    "medical": {"bandage_adhesive": "Band_Aid", "stethoscope": "stethoscope", "syringe": "syringe"},
    "military": {
        "paratrooper": "parachute",
        "vehicles/bradley": "tank half_track",
        "vehicles/bradley_mirror": "tank half_track",
        "vehicles/f22_raptor": "warplane",
        "vehicles/ww2_german_gun": "cannon",
    },
    "plants": {"mushrooms/cep": "bolete", "mushrooms/cep-1": "bolete", "mushrooms/cep-2": "bolete"},
    "seasonal": {
        "candle": "candle",
        "christmas/stocking": "Christmas_stocking",
        "halloween/jackolantern_mean": "jack-o'-lantern",
    },
    "sports": {
        "basketball": "basketball",
        "soccer": "soccer_ball",
        "tennis_ball": "tennis_ball",
        "tennis_racket": "racket",
    },
    "symbols": {"clockface": "analog_clock wall_clock"},
    "town": {"usps_mailbox": "mailbox"},
    "vehicles": {
        "7spoke256": "car_wheel",
        "auto/sportscar2": "sports_car",
        "cycle/pink_tricycle": "tricycle",
        "emergency/firetruck": "fire_engine",
        "flight/balloon360": "balloon",
        "flight/planes/747": "airliner",
        "garbagetruck": "garbage_truck",
        "race/indycar": "racer",
        "wheel_tractor": "tractor",
    },
}
STAMP_FOLDER, NAME_FOLDER = "usr/share/tuxpaint/stamps", "usr/share/darknet/data"
# letters, digits, coins and the like: black shapes that teach nothing about photos
LEFT_OUT = "symbols"


def accepted_classes() -> dict[str, tuple[str, ...]]:
    """File, relative to the stamps and without .png -> the names of the classes that are right for it."""
    return {
        f"{folder}/{name}": tuple(one.replace("_", " ") for one in classes.split())
        for folder, files in CLASSES.items()
        for name, classes in files.items()
    }


def labelled(cache: Path = CACHE) -> tuple[list[Path], list[frozenset[int]]]:
    """The photos, in the order of their names, and for each the classes that are right, as the network counts them."""
    numbers = class_numbers(cache)
    folder = fetch(STAMPS, cache) / STAMP_FOLDER
    table = sorted(accepted_classes().items())
    accepted = [frozenset(number for name in names for number in numbers[name]) for _, names in table]
    return [folder / f"{file}.png" for file, _ in table], accepted


def others(cache: Path = CACHE) -> list[Path]:
    """The pictures without a label, in the order of their names."""
    folder = fetch(STAMPS, cache) / STAMP_FOLDER
    known = accepted_classes()
    found = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.png"))
    return [folder / f"{name}.png" for name in found if name not in known and not name.startswith(LEFT_OUT)]


def class_numbers(cache: Path = CACHE) -> dict[str, tuple[int, ...]]:
    """Class name -> its numbers: the classes of ImageNet-1k in the order of their WordNet ids; two are both cranes."""
    folder = fetch(NAMES, cache) / NAME_FOLDER
    ids = (folder / "imagenet.labels.list").read_text().split()[:NUM_CLASSES]
    names = (folder / "imagenet.shortnames.list").read_text().splitlines()[:NUM_CLASSES]
    found: dict[str, tuple[int, ...]] = {}
    for number, (_, name) in enumerate(sorted(zip(ids, names, strict=True))):
        found[name] = (*found.get(name, ()), number)
    return found


def prepared(path: Path, scale: Scale = IMAGENET) -> Tensor:
    """The cut-out in the middle of a white square, 1.15 times its longer side: [3, 224, 224]."""
    return scale(_on_white(Image.open(path).convert("RGBA"), MARGIN, (0.5, 0.5)))


def scattered(path: Path, scale: Scale = IMAGENET, *, seed: int) -> Tensor:
    """The like for calibration: mirrored or not, at a place and at a size drawn by the seed."""
    rng = np.random.default_rng(seed)
    image = Image.open(path).convert("RGBA")
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return scale(_on_white(image, rng.uniform(1, 1.6), (rng.random(), rng.random())))


def _on_white(image: Image.Image, margin: float, at: tuple[float, float]) -> Image.Image:
    side = round(max(image.size) * margin)
    sheet = Image.new("RGBA", (side, side), "white")
    place = tuple(round((side - size) * share) for size, share in zip(image.size, at, strict=True))
    sheet.alpha_composite(image, place)
    return sheet.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
