"""`saliency show`: some images of a finished run, each as a picture with its map and in words."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import UInt8
from rich.console import Console

from explainer.plot import beside
from explainer.preprocess import Preprocessing, decode, decode_whole
from jobs.commands import ShowConfig
from jobs.config import ConfigurationError, Exit
from jobs.finished import Finished, open_finished
from jobs.options import check_writable, read_options
from jobs.show_told import Carried, Explained, caption, ends, tell_failed, tell_map
from storage.audits import audits_of
from storage.images import Fetched
from storage.locations import CredentialsRefused, Location, WriteRefused
from storage.lookup import alike, rows_of_ids
from storage.names import file_name
from storage.trust import named

# File systems end at 255 bytes, of which an image's id, its target and .png have their parts.
LONGEST_ID, LONGEST_TARGET = 150, 90
# Machines may differ by a level of 255 in some pixels of a crop, not in its mean.
ALIKE = 1e-3


@dataclass(frozen=True)
class Shown:
    """What is to be shown: rows of `explanations` by image, and where pictures go."""

    finished: Finished
    out: Location
    images: Mapping[str, Sequence[Mapping[str, Any]]]


def show(config: ShowConfig, console: Console) -> Exit:
    """Write a PNG for each image and target, and tell what its row says.

    INCOMPLETE where an image has no map or is no longer what was explained: the others are shown.
    Raises ConfigurationError with all that is wrong before it shows any; StorageUnavailable.
    """
    shown = _chosen(config)
    carried = _carried(shown)
    code = Exit.COMPLETE
    for rows in shown.images.values():
        if not _show_image(shown, rows, carried, console):
            code = Exit.INCOMPLETE
        console.print()
    return code


def _chosen(config: ShowConfig) -> Shown:
    finished = open_finished(config.run, config.input_storage, config.output_storage)
    problems: list[str] = []
    out = None
    try:
        out = named(config.out, read_options(config.output_storage))
        if f"{out.url}/".startswith(f"{finished.run.root.url}/"):
            raise ValueError(f"{out} lies in the run: name a place outside of it")
        check_writable(out)
    except (WriteRefused, CredentialsRefused, OSError, ValueError, ImportError) as error:
        problems.append(f"--out: {error}")
    images: dict[str, list[dict[str, Any]]] = {}
    try:
        images = _rows(finished, list(dict.fromkeys(config.ids)), problems)
    except (OSError, ValueError) as error:
        problems.append(f"RUN: {error}")
    if config.target is not None:
        images = {i: _of_target(rows, config.target, problems) for i, rows in images.items()}
    if problems or out is None:
        raise ConfigurationError(problems)
    return Shown(finished, out, images)


def _rows(
    finished: Finished, ids: list[str], problems: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """The explanations of images in the order asked for; unknown ids are told with those alike."""
    if not ids:
        problems.append("IMAGE_ID: name one image at least, as the column image_id has it")
        return {}
    found = rows_of_ids(finished.source, ids)
    unknown = [image_id for image_id in ids if image_id not in found]
    for image_id, near in alike(finished.source, unknown).items() if unknown else ():
        meant = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        problems.append(f"IMAGE_ID: the run has no image {image_id!r}{meant}")
    images = {}
    for image_id in ids:
        if image_id in found:
            images[image_id] = finished.explanations(found[image_id])
            if images[image_id][0]["image_id"] != image_id:
                raise ValueError(
                    f"the manifest has {image_id!r} in row {found[image_id]}, where the run has "
                    f"{images[image_id][0]['image_id']!r}: the manifest has changed since"
                )
    return images


def _of_target(
    rows: list[dict[str, Any]], target: str, problems: list[str]
) -> list[dict[str, Any]]:
    """The rows about one class; an image that has no map at all is told as such later."""
    chosen = [row for row in rows if row["target_name"] == target or row["status"] != "ok"]
    if not chosen:
        have = ", ".join(repr(row["target_name"]) for row in rows)
        problems.append(
            f"--target: no map of {rows[0]['image_id']!r} is of {target!r}; they are of {have}"
        )
    return chosen


def _carried(shown: Shown) -> Mapping[int, Sequence[Carried]] | None:
    """By row of the manifest the cues that audits found on its image; None without an audit."""
    audits = audits_of(shown.finished.run, shown.finished.summary["parts_digest"])
    wanted = pa.array([rows[0]["row"] for rows in shown.images.values()], pa.int64())
    carried: dict[int, list[Carried]] = {row: [] for row in wanted.to_pylist()}
    for audit in audits:
        carriers = audit.table(audit.carriers).select(["target", "cue", "row"])
        findings = audit.table(audit.findings).to_pylist()
        by_cue = {(finding["target"], finding["cue"]): finding for finding in findings}
        for of in carriers.filter(pc.is_in(carriers["row"], wanted)).to_pylist():
            finding = by_cue[of["target"], of["cue"]]
            carried[of["row"]].append(Carried(audit.run.id, finding))
    return carried if audits else None


def _show_image(
    shown: Shown,
    rows: Sequence[Mapping[str, Any]],
    carried: Mapping[int, Sequence[Carried]] | None,
    console: Console,
) -> bool:
    """Whether the image could be shown."""
    row = rows[0]["row"]
    if rows[0]["status"] != "ok":
        tell_failed(console, rows[0])
        return False
    try:
        ((_, fetched),) = shown.finished.files([row])
        pixels = _as_explained(fetched, rows[0], shown.finished.preprocessing)
        problem = None
    except ValueError as error:
        pixels, problem = None, str(error)
    of_image = None if carried is None else carried[row]
    for each in rows:
        explained = Explained(each, shown.finished, of_image)
        place = None
        if pixels is not None:
            place = shown.out.child(_picture_name(each, shown.finished))
            place.replace(_png(explained, pixels))
        tell_map(console, explained, pixels, place.shown if place else f"none: {problem}")
    return pixels is not None


def _as_explained(
    fetched: Fetched, row: Mapping[str, Any], preprocessing: Preprocessing
) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of an image's file. Raises ValueError where they are not those explained."""
    if fetched.data is None:
        raise ValueError(f"the image cannot be read now: {fetched.status}: {fetched.error}")
    now = decode(fetched.data, preprocessing)
    if now.mean is None or now.contrast is None:
        raise ValueError(f"the image cannot be read now: {now.status}: {now.error}")
    shape = len(fetched.data), now.width, now.height
    is_shape = shape == (row["bytes"], row["width"], row["height"])
    colours = row["mean_r"], row["mean_g"], row["mean_b"], row["contrast"]
    if not is_shape or not np.allclose((*now.mean, now.contrast), colours, rtol=0, atol=ALIKE):
        raise ValueError(
            f"the image is no longer the one that was explained: it has {_told(*shape)} and had "
            f"{_told(row['bytes'], row['width'], row['height'])}"
            + (", but other colours" if is_shape else "")
        )
    return decode_whole(fetched.data)


def _told(size: int, width: int | None, height: int | None) -> str:
    return f"{size} bytes, {width} x {height} pixels"


def _picture_name(row: Mapping[str, Any], finished: Finished) -> str:
    name = file_name(row["image_id"], LONGEST_ID)
    if int(finished.run.description["targets_per_image"]) > 1:
        # What file_name gives holds no @, so that no image's name is another's with a target; and
        # two classes may have one name.
        target = f"{row['target']:05d}-{row['target_name']}"
        name += f"@{file_name(target, LONGEST_TARGET)}"
    return f"{name}.png"


def _png(explained: Explained, pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    picture = beside(
        pixels, explained.map, explained.seen(pixels), caption(explained), ends(explained)
    )
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
