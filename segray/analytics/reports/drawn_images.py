"""Images of a label set with their masks drawn, one JPEG file for each image.

Knows which images are drawn and what the files are called. imaging/drawing.py draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Unpack

from segray.analytics.export import names
from segray.analytics.query.atomic_output import atomic_output, require_new_path
from segray.analytics.query.labelled_image import labelled_image
from segray.analytics.reports import contact_sheet
from segray.errors import ImageError, UserError
from segray.imaging import drawing
from segray.label_set import snapshot
from segray.storage.options import StorageKeywords
from segray.storage.uris import PathOrUrl, as_path

_JPEG_QUALITY = 92


@dataclass(frozen=True)
class DrawnImages:
    """The files that were written: name below the folder by image key, and why other images could not be drawn."""

    folder: Path
    files: Mapping[str, str]
    left_out: Mapping[str, str]


def draw_images(
    root: PathOrUrl,
    out: PathOrUrl,
    *,
    keys: Sequence[str] = (),
    count: int = 100,
    classes: Sequence[str] = (),
    min_score: float = 0.3,
    version: int | None = None,
    as_of: datetime | None = None,
    **storage_options: Unpack[StorageKeywords],
) -> DrawnImages:
    """Write images with their masks at full size into a new folder.

    Args:
        root: Folder or URL of the label set.
        out: New folder; an empty folder is allowed.
        keys: Images to draw; empty for those that a contact sheet would show.
        count: Largest number of images, without `keys`.
        classes: Names of the classes that are drawn; empty for all.
        min_score: Smallest score of the instances that are drawn.
        version, as_of, storage_options: As for snapshot.snapshot.

    Raises:
        LabelSetError: There is no such state.
        UserError: The folder is not new, no image can be drawn, or the label set has no such image or class.
        InfrastructureError: The images cannot be reached.
    """
    folder = as_path(out)
    require_new_path(folder, folder=True)
    state = snapshot.snapshot(root, version=version, as_of=as_of, **storage_options)
    if unknown := set(classes) - set(state.classes.values()):
        hint = f"the classes are {', '.join(list(state.classes.values())[:20])}"
        raise UserError(
            "the label set has no such class", where=state.root, found=", ".join(sorted(unknown)), hint=hint
        )
    chosen = list(dict.fromkeys(keys)) or contact_sheet.keys_of(state, count, min_score)
    if not chosen:
        raise UserError("there is no labelled image to draw", where=state.root, hint="label images: `segray label`")
    others = names.other_names(lambda: chosen, "stem")
    store, files, left_out = snapshot.store(storage_options), dict[str, str](), dict[str, str]()
    with atomic_output(folder) as unfinished:
        for key in chosen:
            try:
                things = labelled_image(state, key, store).filter(min_score=min_score, classes=classes or None)
            except (ImageError, FileNotFoundError) as error:
                left_out[key] = str(error).partition("\n")[0]
                continue
            path = PurePosixPath(others[key].name) if key in others else names.path_of_key(key)
            name = f"{names.without_image_extension(path)}.jpg"
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / name).write_bytes(drawing.jpeg(things.draw(), _JPEG_QUALITY))
            files[key] = name
        if not files:
            hint = "check that the images are where they were labelled"
            raise UserError("no image can be drawn", where=state.root, found=next(iter(left_out.values())), hint=hint)
    return DrawnImages(folder, files, left_out)
