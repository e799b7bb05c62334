"""A model as an object: load_model() and Model, which labels images of any kind.

Knows the kinds of images that a caller may have, and the order of results. execution/image_steps.py labels an image, as
in the worker of a run. Knows nothing of label sets and Ray.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from segray import config
from segray._system import memory
from segray._system.logger import LOGGER
from segray.arguments import PositiveCount, Within, checked, checked_methods, shortened
from segray.config import ModelSettings, TilesSettings
from segray.errors import ArgumentError, ImageError
from segray.execution.image_steps import ImageMemory, ImageSteps, LabellerSettings, LoadedModel, thread_count
from segray.execution.model_loading import load, one_opencv_thread
from segray.execution.stage_timer import StageTimer
from segray.execution.tiling import TilingOptions
from segray.execution.valid_rows import drop_invalid_rows
from segray.imaging import decode
from segray.imaging.decode import PillowImage, Pixels
from segray.instances import ImageRef, Instances
from segray.limits import DEFAULT_LIMITS
from segray.models import engine, model_cache, resolve
from segray.sources.reader import CoalescedRead, Files
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import PathOrUrl, as_uri

ImageLike = NDArray[np.uint8] | PathOrUrl | bytes | bytearray | memoryview | PillowImage
Device = Literal["CPU", "GPU", "NPU", "AUTO"] | str
Precision = Literal["auto", "f32", "bf16", "f16", "int8"]
Threads = Annotated[int, Within(1, 1024)]


class ModelKeys(TypedDict, total=False):
    """The further keys of the section `model` of a configuration; configs/reference.yaml says what each one means."""

    name: str
    sha256: str | Mapping[str, str] | None
    on_change: Literal["refuse", "take", "keep"]
    form: Literal["original", "converted"] | None
    adapter: str | None
    size: tuple[int, int] | None
    preprocessing: Mapping[str, Any] | None
    class_thresholds: Mapping[int | str, float]
    score_floor: float | None
    max_detections: int | None
    min_area: int
    nms: Literal["per_class", "fast", "cross_class"] | None
    nms_iou: float | None
    paste: Literal["tile", "reframe"] | None
    scaled_decode: bool
    fixed_shapes: int
    cache_dir: str | os.PathLike[str] | None


@checked
def load_model(
    model: PathOrUrl = "stickers",
    *,
    device: Device = "CPU",
    precision: Precision = "auto",
    threads: Threads | None = None,
    score_threshold: float | None = None,
    labels: Mapping[int, str] | None = None,
    tiles: Mapping[str, Any] | None = None,
    **keys: Unpack[ModelKeys],
) -> Model:
    """Load a model onto a device of this machine. The model then labels images in this process, without Ray.

    Args:
        model: The file or folder of a model, such as `best_openvino_model`, or its address, such as
            `hf://ORG/NAME/FOLDER`, which is fetched once; or a name that `segray models list` shows.
            `stickers` comes with segray. For another name, `models/NAME/NAME.xml` is taken, which `segray models pull`
            writes; the keyword `name` with a path takes any other place.
        device: Device of OpenVINO: CPU, GPU, GPU.1, NPU.
        precision: auto for the device's default, which differs between machines; f32, bf16, f16; int8 for a quantised
            model.
        threads: Number of threads; None for all CPUs that the process may use.
        score_threshold: Smallest score of a row, 0..1; None for the model's own threshold.
        labels: Category id -> class name, in the order of the network; None for the model's own.
        tiles: Cut large images into tiles, as `source.tiles` does: {"size": 1024, "overlap": 0.2, "whole": True}, the
            size in pixels; None to label each image as a whole.
        **keys: Further keys of the section `model`: max_detections, class_thresholds, min_area, nms, nms_iou, size,
            preprocessing, name, form and others.

    Raises:
        ModelError: The files are missing, are no model that segray decodes, or do not run on the device.
        ArgumentError: A value is of a wrong kind.
        ConfigError: A keyword is unknown or has a wrong value, or the file does not tell a fact that decoding needs.
        AccessError: The place of a model at an address refuses the request.
        InfrastructureError: The place cannot be reached, and the model has not been fetched before.

    Example:
        >>> model = segray.load_model("best_openvino_model", score_threshold=0.3)
        >>> model("photo.jpg").class_names
        array(['person', 'dog'], dtype='<U6')
    """
    where = "load_model"
    given = {"precision": precision, "score_threshold": score_threshold, "labels": labels, **keys}
    values = {**resolve.keys_of(model), **given}
    settings, tile_settings = config.validate_model(values, where, tiles=tiles)
    return Model(settings, device, threads, tile_settings)


@dataclass(frozen=True)
class _Loaded:
    """A compiled model with all that labels images by it.

    files, memory: readers of image files, and the budgets of their bytes and pixels.
    """

    model: LoadedModel
    steps: ImageSteps
    files: Files
    memory: ImageMemory


@checked_methods
class Model:
    """A model on a device, which labels images. `segray.load_model` makes models.

    Several threads may use a model at once. A pickled model is its settings, and is loaded where it is unpickled.
    So a spawned process may get a model. A forked process cannot use the model of its parent, and gets a UserError.
    """

    def __init__(
        self, settings: ModelSettings, device: str, threads: int | None, tiles: TilesSettings | None = None
    ) -> None:
        """Load the model; see load_model()."""
        resolved = model_cache.resolved(settings, StorageOptions(), LOGGER.info)
        self._arguments = settings, device, threads, tiles
        self._resolved, self._settings, self._device = resolved, resolved.complete(settings), device
        self._cores = threads or engine.available_cpus()
        self._tiles = None if tiles is None else TilingOptions(**tiles.model_dump())
        self._loaded_model = self._load()

    def _load(self) -> _Loaded:
        memory.return_large_blocks()
        tiled = self._tiles is not None
        model = load(self._resolved, self._settings, self._device, self._cores, tiled=tiled)
        limits = LabellerSettings(self._cores, DEFAULT_LIMITS, self._tiles, scaled_decode=self._settings.scaled_decode)
        budgets = ImageMemory.for_cores(self._cores)
        steps, files = ImageSteps(model, limits, budgets.pixels), Files(Store(), DEFAULT_LIMITS, budgets.files)
        return _Loaded(model, steps, files, budgets)

    @property
    def _loaded(self) -> _Loaded:
        engine.check_not_forked()
        return self._loaded_model

    def __reduce__(self) -> tuple[Any, ...]:
        return Model, self._arguments

    # ---- facts ----

    @property
    def name(self) -> str:
        """Return the model's name in the catalogue, or the family of a model that describes itself."""
        return self._resolved.name

    @property
    def family(self) -> str:
        """Return the name of the adapter that prepares the model's inputs and decodes its outputs."""
        return self._resolved.adapter.name

    @property
    def labels(self) -> Mapping[int, str]:
        """Return category id -> class name, for all classes of the model."""
        return dict(self._resolved.adapter.labels)

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Return height and width of the network's input, in pixels; None for a network that takes any size."""
        return self._loaded.model.engine.size_hw

    @property
    def facts(self) -> Mapping[str, str]:
        """Return what is in effect: openvino, device, device_name, precision, streams and threads."""
        return dict(self._loaded.model.engine.facts)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return the section `model` of a configuration that labels as this model does."""
        return self._settings.model_dump(exclude_none=True)

    def run_keys(self) -> dict[str, Any]:
        """Return the dotted keys of a configuration whose run labels as this model does, on the same device."""
        keys = {f"model.{key}": value for key, value in self.settings.items()}
        if self._arguments[3] is not None:
            keys["source.tiles"] = self._arguments[3].model_dump()
        return {**keys, "workers": [{"device": self._device, "threads": self._arguments[2]}]}

    def __repr__(self) -> str:
        size = "any size" if self.size_hw is None else f"{self.size_hw[1]}x{self.size_hw[0]}"
        facts = self.facts
        return (
            f"Model({self.name}: {len(self.labels)} classes, input {size}, {facts['device']} {facts['precision']}, "
            f"scores from {self._settings.score_threshold:g})"
        )

    # ---- labelling ----

    def __call__(self, image: ImageLike) -> Instances:
        """Return the instances of one image. The result keeps the image for pictures.

        Args:
            image: (h, w, 3) uint8 RGB, upright; the path or URL of an image; the bytes of an image file; or an image of
                Pillow. Files and Pillow images are turned upright by their EXIF orientation.

        Returns:
            The rows that a run writes for this image, highest score first or in the order of the family's library.
            Boxes and masks are in pixels of the upright image.

        Raises:
            ImageError: The image is missing, cannot be decoded or labelled.
            ArgumentError: The value is no image.

        Example:
            >>> things = model(PIL.Image.open("photo.jpg"))
        """
        return self._label(image, keep_image=True)

    @overload
    def predict(self, images: Iterable[ImageLike], *, errors: Literal["raise"] = "raise") -> Iterator[Instances]: ...
    @overload
    def predict(
        self, images: Iterable[ImageLike], *, errors: Literal["return"]
    ) -> Iterator[Instances | ImageError]: ...
    def predict(
        self, images: Iterable[ImageLike], *, errors: Literal["raise", "return"] = "raise"
    ) -> Iterator[Instances | ImageError]:
        """Yield the instances of each image, in the order of the images.

        The threads that a worker of a run uses read, decode and infer, so that the device is always busy. The images
        are taken from `images` as room becomes free. At most `look_ahead` images are in work or finished at a time. The
        results do not keep their images. An abandoned iterator stops its threads.

        Args:
            images: Images as for `model(image)`: a list, a generator, a glob of paths.
            errors: `raise` ends the iteration with the first ImageError. `return` yields the ImageError in place of the
                instances, and goes on.

        Raises:
            ImageError: As for `model(image)`.
            ArgumentError: `images` is a single path, or a value among them is no image.

        Example:
            >>> for path, things in zip(paths, model.predict(paths)):
            ...     print(path, len(things))
        """
        is_one = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | np.ndarray | Mapping)
        if is_one or decode.is_pillow(images) or not isinstance(images, Iterable):
            raise ArgumentError(
                "predict takes several images",
                where="predict(images)",
                found=type(images).__name__,
                hint='call model(image) for one image; for a folder, predict(Path("photos").rglob("*.jpg"))',
            )
        if errors not in ("raise", "return"):
            hint = 'give errors="raise" or errors="return"'
            raise ArgumentError(
                "predict has no such way to treat errors", where="errors", found=repr(errors), hint=hint
            )
        return self._predict(iter(images), errors == "return")

    @property
    def look_ahead(self) -> int:
        """Return the largest number of images that `predict` has in work or finished at a time."""
        return 2 * thread_count(self._loaded.model.engine, self._cores)

    def _predict(self, images: Iterator[ImageLike], return_errors: bool) -> Iterator[Instances | ImageError]:
        waiting: deque[Future[Instances]] = deque()
        look_ahead = self.look_ahead
        pool = ThreadPoolExecutor(look_ahead // 2, thread_name_prefix="image")
        try:
            with one_opencv_thread:
                is_open = True
                while is_open or waiting:
                    while is_open and len(waiting) < look_ahead:
                        is_open = self._submit_next(images, pool, waiting)
                    if not waiting:
                        break
                    try:
                        result: Instances | ImageError = waiting.popleft().result()
                    except ImageError as error:
                        if not return_errors:
                            raise
                        result = error
                    yield result
        finally:
            pool.shutdown(cancel_futures=True)

    def _submit_next(
        self, images: Iterator[ImageLike], pool: ThreadPoolExecutor, waiting: deque[Future[Instances]]
    ) -> bool:
        """Give the next image to a thread; return whether there was one."""
        try:
            image = next(images)
        except StopIteration:
            return False
        waiting.append(pool.submit(self._label, image, keep_image=False))
        return True

    def _label(self, image: ImageLike, *, keep_image: bool) -> Instances:
        loaded, timer = self._loaded, StageTimer("read")
        name = "the array"
        try:
            if isinstance(image, np.ndarray):
                pixels = _checked(image)
                return self._named(loaded.steps.label_pixels(pixels, pixels.shape[:2], timer), pixels, keep_image)
            if decode.is_pillow(image):
                name = getattr(image, "filename", "") or "the Pillow image"
                pixels = decode.from_pillow(image).image
                return self._named(loaded.steps.label_pixels(pixels, pixels.shape[:2], timer), pixels, keep_image)
            read, name = self._read(loaded, image)
            if not keep_image:
                return self._named(loaded.steps.label(read, 0, timer)[1], None, keep_image)
            with loaded.steps.decoded(read, 0, timer) as decoded:
                size_hw, pixels = decoded.facts.size_hw, decoded.pixels
                instances = loaded.steps.label_pixels(pixels, size_hw, timer)
                return self._named(instances, pixels if pixels.shape[:2] == size_hw else None, keep_image)
        except FileNotFoundError as error:
            raise _absent(name, error) from error
        except OSError as error:
            hint = "give the path of an image file; for a folder, use model.predict"
            raise ImageError(
                "the image cannot be read", stage="read", where=name, found=str(error), hint=hint
            ) from error
        except ImageError as error:
            hint = error.hint or "open the image in a viewer, or get the file again"
            where, found = error.where or name, error.found or f"stage {error.stage}"
            raise ImageError(error.what, stage=error.stage, where=where, found=found, hint=hint) from error

    def _read(self, loaded: _Loaded, image: object) -> tuple[CoalescedRead, str]:
        """Return the read of a file's bytes, and the name of the file for errors."""
        if isinstance(image, bytes | bytearray | memoryview):
            data = bytes(image)
            return CoalescedRead([0], len(data), lambda: lambda row: data, loaded.memory.files), f"{len(data)} bytes"
        if not isinstance(image, str | os.PathLike) or not os.fspath(image):
            _refuse(image)
        uri = as_uri(image)
        (read,) = loaded.files.portions([ImageRef(uri, uri)])
        return read, uri

    def _named(self, instances: Instances, pixels: Pixels | None, keep_image: bool) -> Instances:
        """Return the rows that a table can hold, with the names of their classes."""
        labels = self._resolved.adapter.labels
        kept, _ = drop_invalid_rows(instances, labels)
        return replace(kept, labels=labels, image=pixels if keep_image else None)

    # ---- for who runs the network elsewhere ----

    def prepare(self, image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return the inputs of the network for one image, as the file of the model takes them.

        The arrays suit any program that runs the file: ONNX Runtime, a model server, OpenVINO itself. They have the
        colour order, scale, layout, size and dtype of the file, and a batch axis of 1.

        Args:
            image: (h, w, 3) uint8 RGB, upright.

        Returns:
            Arrays by the name of the input.

        Raises:
            ArgumentError: The value is no such array.

        Example:
            >>> outputs = session.run(None, model.prepare(image))  # onnxruntime.InferenceSession("best.onnx")
            >>> things = model.decode(outputs, image.shape[:2])
        """
        loaded = self._loaded.model
        return engine.graph_inputs(self._graph, loaded.form, loaded.inputs(_checked(image)))

    def decode(
        self, outputs: Mapping[str, NDArray[Any]] | Sequence[NDArray[Any]], size_hw: tuple[PositiveCount, PositiveCount]
    ) -> Instances:
        """Return the instances in the outputs of the network for one image. The outputs are not changed.

        Args:
            outputs: Arrays by the name of the output, or a list in the order of the file. Batch axis included.
            size_hw: Height and width of the source image, in pixels.

        Returns:
            Instances as of `model(image)`, without the image.

        Raises:
            ModelError: An output is missing or has another shape.

        Example:
            >>> model.decode({"output0": rows, "output1": prototypes}, (480, 640))
        """
        loaded = self._loaded.model
        by_name = engine.form_outputs(self._ports, loaded.form, outputs)
        return self._named(loaded.adapter.decode(by_name, size_hw, loaded.options), None, keep_image=False)

    @cached_property
    def _graph(self) -> Any:
        return engine.read(self._resolved.path)

    @cached_property
    def _ports(self) -> engine.Signature:
        return self._resolved.signature()


def _checked(image: NDArray[Any]) -> Pixels:
    """Return an array as contiguous pixels; raise ArgumentError for an array that is no upright RGB image."""
    if not _is_rgb(image):
        _refuse(image)
    return np.ascontiguousarray(image)


def _is_rgb(image: object) -> bool:
    if not isinstance(image, np.ndarray):
        return False
    return image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.size > 0


def _absent(path: str, error: FileNotFoundError) -> ImageError:
    """Return the error for a path without a file: nothing is there, or a folder is."""
    if Path(path).is_dir():
        what, found = "the path is a folder, not an image", "a folder"
        hint = f'for all images of the folder: model.predict(Path({path!r}).rglob("*.jpg")), or segray.label'
    else:
        what, found = "the image does not exist", str(error)
        hint = "check the path; a path is relative to the working folder"
    return ImageError(what, stage="read", where=path, found=found, hint=hint)


def _refuse(image: object) -> NoReturn:
    found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else shortened(image)
    raise ArgumentError("this is no image", where="image", found=found, hint=_way_to_rgb(image))


def _way_to_rgb(image: object) -> str:
    """Return what makes an image of a value."""
    if not isinstance(image, np.ndarray):
        if isinstance(image, list | tuple | set):
            return "give one image, or call model.predict(images)"
        if hasattr(image, "read"):
            return "give the bytes of the file: model(file.read())"
        if hasattr(image, "__array__"):
            return "give an array of numpy, (height, width, 3) uint8 RGB: numpy.asarray(image)"
        return "give (height, width, 3) uint8 RGB, a path, the bytes of a file or a Pillow image"
    if not image.size:
        return "give an image of one pixel or more"
    if image.ndim == 4:
        return "give one image, such as images[0], or call model.predict(images)"
    if image.ndim == 2:
        return "make three channels: numpy.stack([image] * 3, axis=-1)"
    if image.ndim == 3 and image.shape[2] == 4:
        return "drop the alpha channel: image[..., :3]; OpenCV's BGRA becomes RGB by image[..., 2::-1]"
    if image.ndim == 3 and image.shape[2] == 1:
        return "make three channels: numpy.repeat(image, 3, axis=2)"
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        return "put the channels last: image.transpose(1, 2, 0)"
    if image.ndim == 3 and image.shape[2] == 3 and image.dtype.kind == "f":
        return "make bytes: (image * 255).astype(numpy.uint8) for values from 0 to 1"
    if image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint16:
        return "make bytes: (image >> 8).astype(numpy.uint8) for 16 bits"
    return "give (height, width, 3) uint8 RGB; OpenCV's BGR becomes RGB by image[..., ::-1]"
