"""The report's page: pictures within its size, numbers as text, and one HTML file of all of it."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from explainer.audit.verdicts import Verdict
from explainer.preprocess import Preprocessing
from jobs.comparison import ClassComparison, Comparison
from jobs.report_classes import Classes, ClassView, Map
from jobs.report_findings import SHORT, Card, Findings
from jobs.report_pictures import Photo, cells_url, photo
from jobs.report_scan import EXEMPLARS, Shown

TEMPLATE = Path(__file__).parent / "report_template"
# A page of 1,000 classes stays under 30 MB: the pictures of findings and the exemplars have so much
# each, which is a third more in base64; cells of maps and text take the rest.
FINDINGS_BYTES, EXEMPLAR_BYTES = 8 * 2**20, 7 * 2**20
MOST_BYTES = 400_000  # of one picture
FEW_CLASSES, EXEMPLARS_OF_MANY = 300, 2
SIDE, SIDE_OF_MANY = 240, 96
GROUPS = {"all": "all", "correct": "right", "incorrect": "wrong"}


@dataclass(frozen=True)
class Pictures:
    """The images of a page as they could be loaded, or why not, by row and class."""

    photos: Mapping[tuple[int, int], Photo | str]
    names: Mapping[int, str]

    def figure(self, image: Shown) -> dict[str, Any]:
        """An image as the page's script and template draw it."""
        found = self.photos.get((image.row, image.target), "pictures were left out")
        about = {
            "id": image.image_id,
            "label": image.label_name,
            "called": image.predicted_name,
            "explained": self.names[image.target],
            "probability": f"{image.probability:.0%}",
            "agreement": f"{image.agreement:.2f}",
        }
        return about | ({"error": found} if isinstance(found, str) else asdict(found))


@dataclass(frozen=True)
class Changes:
    """What changed from the run before, with the mean maps of classes then and now, by name; none
    where their grids differ."""

    told: Comparison
    then: Mapping[str, Map]
    now: Mapping[str, Map]

    @property
    def classes(self) -> list[ClassComparison]:
        """Those that are right more or less often than before, or look elsewhere."""
        return [
            of
            for of in self.told.classes
            if of.looks_elsewhere or (of.accuracy is not None and of.accuracy.is_significant)
        ]

    def heatmaps(self, name: str) -> list[dict[str, Any]]:
        """The class's mean map then, now, and how it changed."""
        if name not in self.then or name not in self.now:
            return []
        then, now = self.then[name], self.now[name]
        return [
            {"url": cells_url(then), "caption": "before", "scale": "inferno"},
            {"url": cells_url(now), "caption": "after", "scale": "inferno"},
            difference(now - then, "after less before"),
        ]


@dataclass(frozen=True)
class Page:
    """All that one report says."""

    facts: Sequence[tuple[str, str]]
    statuses: Mapping[str, int]
    classes: Classes
    findings: Findings | None
    cards: Sequence[Card]
    sheets: Mapping[tuple[int, int], str]
    pictures: Pictures
    many: bool
    changes: Changes | None = None

    @cached_property
    def views(self) -> list[ClassView]:
        """The classes, by name."""
        return list(self.classes.views())


def render(page: Page) -> str:
    """The page as one HTML file, which asks for nothing else and runs no script but its own."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATE / "page.js").read_text()
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.jinja").render(
        page=page,
        verdicts={str(verdict): slug for verdict, slug in SHORT.items()},
        rows=[class_row(page, view) for view in page.views],
        blobs=[(view.target, _json(blob(page, view))) for view in page.views],
        heat={view.target: heatmaps(view) for view in page.views},
        scales={
            name: cells_url(np.linspace(0, 1, 256)[None], name) for name in ("inferno", "berlin")
        },
        style=Markup((TEMPLATE / "page.css").read_text()),
        script=Markup(script),
        script_digest=digest,
        clean=_named(page, Verdict.CLEARED),
        untestable=_named(page, Verdict.UNTESTABLE),
    )


def class_row(page: Page, view: ClassView) -> dict[str, Any]:
    """A class in the table: values to show and, beside them, to sort by."""
    means = view.scanned.means if view.scanned.maps else {}
    verdict = None if page.findings is None else page.findings.of_class.get(view.target)
    numbers = {
        "images": view.images,
        "accuracy": view.accuracy,
        "explained": view.scanned.maps,
        **{name: means.get(name) for name in ("agreement", "border_mass", "entropy")},
    }
    return {
        "target": view.target,
        "name": view.name,
        "verdict": None if verdict is None else str(verdict),
        "order": len(Verdict) if verdict is None else list(Verdict).index(verdict),
        "slug": "untested" if verdict is None else SHORT[verdict],
        "thumb": cells_url(view.heatmaps["all"].mean),
        "numbers": numbers,
    }


def heatmaps(view: ClassView) -> list[dict[str, Any]]:
    """The class's maps: all, right, wrong, and the difference to all other classes' images."""
    found = [
        {
            "url": cells_url(view.heatmaps[group].mean),
            "caption": f"{words}: {view.heatmaps[group].count} images",
            "scale": "inferno",
        }
        for group, words in GROUPS.items()
        if group in view.heatmaps
    ]
    if view.difference is not None:
        found.append(difference(view.difference, "less the other classes' mean"))
    return found


def difference(of: Map, words: str) -> dict[str, Any]:
    """A map of differences, whose largest is an end of the scale."""
    most = float(np.abs(of).max()) or 1.0
    caption = f"{words}: from -{most:.2f} to +{most:.2f}"
    return {"url": cells_url(0.5 + of / most / 2, "berlin"), "caption": caption, "scale": "berlin"}


def blob(page: Page, view: ClassView) -> dict[str, Any]:
    """What the page's script shows of a class once it is opened."""
    most, least = view.scanned.exemplars(EXEMPLARS_OF_MANY if page.many else EXEMPLARS)
    figures = page.pictures.figure
    statistics = {} if page.findings is None else page.findings.statistics.get(view.target, {})
    return {
        "name": view.name,
        "heat": heatmaps(view),
        "taken_for": view.taken_for,
        "taken_from": view.taken_from,
        "images": view.images,
        "right": view.right,
        "called": view.called,
        "most": [figures(image) for image in most],
        "least": [figures(image) for image in least],
        "numbers": [
            [name.replace("_", " "), f"{value:.3g}"] for name, value in view.scanned.means.items()
        ]
        if view.scanned.maps
        else [],
        "statistics": _statistics(statistics),
        "cues": [] if page.findings is None else page.findings.cues_of(view.target),
    }


@dataclass(frozen=True)
class Wanted:
    """An image that the page shows, no side longer than `side`, in about `most` bytes."""

    image: Shown
    side: int | None
    most: int


def load_photos(
    files: Iterable[tuple[int, bytes | str]],
    wanted: Mapping[tuple[int, int], Wanted],
    how: Preprocessing,
) -> dict[tuple[int, int], Photo | str]:
    """Pictures of files, which come with their rows, by row and class.

    A file that is text says why there is none.
    """
    of_row: dict[int, list[tuple[int, int]]] = {}
    for key in wanted:
        of_row.setdefault(key[0], []).append(key)
    return {
        key: _photo(data, wanted[key], how) for row, data in files for key in of_row.get(row, [])
    }


def _photo(data: bytes | str, wanted: Wanted, how: Preprocessing) -> Photo | str:
    if isinstance(data, str):
        return data
    try:
        return photo(data, wanted.image.saliency, how, wanted.side, wanted.most)
    except ValueError as error:
        return f"cannot be decoded now: {error}"


def _statistics(row: Mapping[str, Any]) -> list[list[str]]:
    """Of statistics.parquet: a number of the class's maps beside that of other classes'."""
    return [
        [name.replace("_", " "), f"{row[name]:.3g}", f"{row[f'{name}_of_others']:.3g}"]
        for name in row
        if f"{name}_of_others" in row and row[name] is not None
    ]


def _named(page: Page, verdict: Verdict) -> list[tuple[str, str]]:
    """Classes of which this is the worst verdict, and a reason: of that verdict if there is one,
    else of a cue that could not be tested."""
    if page.findings is None:
        return []
    found = {}
    for row in reversed(page.findings.rows):
        is_of_cue = row["cue"] is not None and row["verdict"] == Verdict.UNTESTABLE
        reason = f"a cue was found, and not tested: {row['reason']}" if is_of_cue else row["reason"]
        if row["target"] not in found or not is_of_cue:
            found[row["target"]] = row["target_name"], reason
    return sorted(found[target] for target in page.findings.classes(verdict))


def _json(value: Mapping[str, Any]) -> Markup:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
