"""The workload of all variants: the same image files, the same model, the same options.

Knows scenes, files and the configuration of the model. Knows nothing of processes or clocks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray import config
from segray.errors import ConfigError, InfrastructureError
from segray.execution.model_loading import options_of
from segray.imaging.opencv import cv2
from segray.models import engine, resolve
from segray.models.adapters.adapter import ModelAdapter, ModelFormat, Options
from segray.models.engine import Compiled, DeviceSettings
from segray.sources import listing
from segray.storage.store import Store
from segray.storage.uris import join
from segray.synthetic.scene import draw_scene

_SEED = 0
# With this JPEG quality scenes have as many bytes per pixel as photographs, so that decoding takes as long.
_JPEG_QUALITY = 95
# Number of distinct scenes. Further scenes are hard links to these files.
_MOST_SCENES = 32
_COPY_THREADS = 8


@dataclass(frozen=True)
class Measurement:
    """A variant's measurement of itself.

    began_s, ended_s: time.monotonic of the timed part. images: number of images in the timed part.
    cpu_seconds: total CPU seconds by stage. marks: further times. facts: further facts, such as the device's settings.
    """

    began_s: float
    ended_s: float
    images: int
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)
    marks: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """The inputs of all variants.

    images: paths, each once. model: section `model` of the configuration. threads: of the device; also the CPUs of
    the clusters. settings: further configuration of segray, key=value. remote: prefix in object storage that holds
    copies of the images. manifest: a file with the same images, one path per line.
    """

    folder: str
    images: tuple[str, ...]
    model: Mapping[str, Any]
    threads: int
    settings: tuple[str, ...] = ()
    remote: str | None = None

    @property
    def manifest(self) -> Path:
        """Return the path of the manifest."""
        return Path(self.folder, "images.txt")

    def save(self) -> Path:
        """Write the workload where every variant reads it; return the path of the file."""
        self.manifest.write_text("".join(f"{path}\n" for path in self.images), "utf-8")
        file = Path(self.folder, "workload.json")
        file.write_text(json.dumps(asdict(self), indent=2), "utf-8")
        return file

    @staticmethod
    def load(file: Path) -> Workload:
        """Read the workload that `save` wrote."""
        values = json.loads(file.read_text("utf-8"))
        return Workload(**{**values, "images": tuple(values["images"]), "settings": tuple(values["settings"])})

    def configuration(self, root: Path) -> config.Config:
        """Return segray's configuration for a label set at `root`; raise ConfigError for wrong options."""
        values: dict[str, Any] = {
            "source": {"uri": str(self.manifest)},
            "output": {"root": str(root)},
            "model": dict(self.model),
            "workers": [{"threads": self.threads}],
        }
        return config.validate(values, "segray bench", self.settings)

    def compile_model(self, hint: str = "THROUGHPUT") -> tuple[Compiled, ModelAdapter, ModelFormat, Options]:
        """Return the model compiled as in segray's workers, with its adapter, form and options."""
        model, adapter, form, options = self.resolve_model()
        model_config = self.configuration(Path()).model
        settings = DeviceSettings(threads=self.threads, precision=model_config.precision, hint=hint)
        compiled = engine.compile_network(model.path, form, settings)
        adapter = adapter.with_size(form.name, compiled.size_hw).with_softmax(compiled.softmax_outputs)
        return compiled, adapter, adapter.forms[form.name], options

    def resolve_model(self) -> tuple[resolve.ResolvedModel, ModelAdapter, ModelFormat, Options]:
        """Return the model's files, adapter, form and options."""
        model_config = self.configuration(Path()).model
        model = resolve.configured(model_config)
        return model, model.adapter, model.form, options_of(model_config, model.adapter)


def copy_images(images: Iterable[str], prefix: str, store: Store) -> None:
    """Copy the files to `prefix`, under their names."""
    with ThreadPoolExecutor(_COPY_THREADS) as pool:
        for _ in pool.map(lambda path: store.put(join(prefix, Path(path).name), Path(path).read_bytes()), images):
            pass


# ---- images ---------------------------------------------------------------------------------------


def list_images(uri: str, count: int) -> tuple[str, ...]:
    """Return the first `count` images of a local folder, glob or manifest, in the order of the listing."""
    image_uris = [ref.uri for batch in listing.read(uri, Store()) for ref in listing.refs(batch)]
    if not_local := [image_uri for image_uri in image_uris if not Path(image_uri).is_file()]:
        hint = "Copy the images to a local folder first. The benchmark reads local files only."
        raise ConfigError("These images are not local files.", where=uri, found=not_local[0], hint=hint)
    return tuple(image_uris[:count])


def draw_images(folder: Path, count: int, size_hw: tuple[int, int]) -> tuple[str, ...]:
    """Write `count` JPEG files of sticker scenes and return their paths. Equal arguments give equal files.

    size_hw: height and width of the scenes, in pixels. Files that exist are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    height, width = size_hw
    scenes = [folder / f"scene-{width}x{height}-{i:05d}.jpg" for i in range(count)]
    for i, file in enumerate(scenes[:_MOST_SCENES]):
        if not file.exists():
            file.write_bytes(_draw_jpeg(i, size_hw))
    for file, original in zip(scenes[_MOST_SCENES:], cycle(scenes[:_MOST_SCENES]), strict=False):
        if not file.exists():
            os.link(original, file)
    return tuple(str(file.absolute()) for file in scenes)


def _draw_jpeg(index: int, size_hw: tuple[int, int]) -> bytes:
    scene = draw_scene(np.random.default_rng([_SEED, index]), size_hw, max_things=12)
    encoded, data = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not encoded:
        raise InfrastructureError("OpenCV could not encode a scene", found=f"{size_hw}")
    return data.tobytes()


def read_pixels(images: Iterable[str], most: int) -> list[NDArray[np.uint8]]:
    """Return the first `most` readable images, upright, uint8 (h, w, 3) RGB."""
    decoded = (cv2.imread(path, cv2.IMREAD_COLOR_RGB) for path in images)
    readable = (np.asarray(image, np.uint8) for image in decoded if image is not None)
    if not (first := list(islice(readable, most))):
        raise ConfigError("None of the images can be read.", where="--images", hint="Give a folder of photographs.")
    return first
