"""Training of the sticker network: drawn scenes, prior matching, losses, two stages, one cosine schedule.

Knows the schedule and the losses. The network is in network.py, the scenes are in segray/synthetic/scene.py. All
lengths are steps and all draws are seeded. A run is reproducible on the same machine with the same thread count.
Needs the `train` extra.

Sources: SSD matching and hard negative mining (Liu et al., ECCV 2016), YOLACT's mask assembly (Bolya et al.,
ICCV 2019), GIoU (Rezatofighi et al., CVPR 2019), classification targets weighted by localisation quality
(Li et al., "Generalized Focal Loss", NeurIPS 2020).
"""

from __future__ import annotations

import concurrent.futures
import copy
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segray.imaging.opencv import cv2
from segray.synthetic.scene import Scene, draw_scene
from segray.synthetic.shapes import STICKERS
from training.network import INPUT_PX, RawOutputs, StickerNet, as_images, decode_boxes, encode_boxes, priors_cxcywh

_INDEX = {sticker.category_id: i for i, sticker in enumerate(STICKERS)}
_SIZES_HW = ((550, 550), (480, 640), (640, 480), (427, 640), (600, 800), (720, 960))
_MAX_THINGS = 12


@dataclass(frozen=True)
class Schedule:
    """The amount of data and the length of training, in counts and steps."""

    seed: int = 7
    crops: int = 10_000
    scenes: int = 4_800
    crop_px: int = 288
    crop_steps: int = 3_000
    crop_batch: int = 32
    scene_steps: int = 3_000
    scene_batch: int = 16
    learning_rate: float = 2e-3
    warm_up: float = 0.04
    weight_decay: float = 0.02
    ema: float = 0.998
    checkpoint_every: int = 200

    @property
    def steps(self) -> int:
        return self.crop_steps + self.scene_steps


# ---- data -----------------------------------------------------------------------------------------


def _fit(scene: Scene, side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[int]]:
    """Stretch a scene to a square as the adapter does, after JPEG compression as of a stored photo.

    Returns the image (side, side, 3) RGB, the owners (side, side), and the classes of the objects.
    """
    _, jpeg = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    decoded_bgr: Any = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    image = decoded_bgr[..., ::-1]
    interpolation = cv2.INTER_AREA if image.shape[0] > side else cv2.INTER_LINEAR
    image = cv2.resize(image, (side, side), interpolation=interpolation)
    owners: Any = cv2.resize(scene.owners, (side, side), interpolation=cv2.INTER_NEAREST)
    return image, owners, [_INDEX[c] for c in scene.category_ids]


def _draw_range(folder: str, kind: str, seed: int, side: int, start: int, stop: int) -> None:
    """Draw the images start .. stop-1 into the arrays that `draw_dataset` created."""
    cv2.setNumThreads(1)
    images = np.load(f"{folder}/{kind}-images.npy", mmap_mode="r+")
    owners = np.load(f"{folder}/{kind}-owners.npy", mmap_mode="r+")
    classes = np.load(f"{folder}/{kind}-classes.npy", mmap_mode="r+")
    for i in range(start, stop):
        rng = np.random.default_rng([seed, len(kind), i])
        if kind == "crops":
            scene = draw_scene(rng, (side, side), max_things=6, lengths_px=(24, 240), frame_px=INPUT_PX)
        else:
            size_hw = _SIZES_HW[int(rng.integers(len(_SIZES_HW)))]
            scene = draw_scene(rng, size_hw, max_things=10)
        images[i], owners[i], labels = _fit(scene, side)
        classes[i] = -1
        classes[i, : len(labels)] = labels


def draw_dataset(folder: Path, kind: str, count: int, side: int, seed: int, processes: int) -> None:
    """Draw `count` training images of `kind` (crops or scenes) into memory-mapped arrays in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, shape, dtype in (
        ("images", (count, side, side, 3), np.uint8),
        ("owners", (count, side, side), np.uint8),
        ("classes", (count, _MAX_THINGS), np.int16),
    ):
        np.lib.format.open_memmap(folder / f"{kind}-{name}.npy", "w+", dtype, shape).flush()
    bounds = np.linspace(0, count, processes * 8 + 1).astype(int)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        jobs = [
            pool.submit(_draw_range, str(folder), kind, seed, side, int(start), int(stop))
            for start, stop in zip(bounds[:-1], bounds[1:], strict=True)
        ]
        for job in jobs:
            job.result()


@dataclass(frozen=True)
class Batch:
    """A batch of b images with up to g things each, padded.

    images (b, 3, s, s) float32 RGB 0..255; boxes (b, g, 4) xyxy normalised; classes (b, g) int64, -1 for
    padding; masks (b, g, p, p) float32, area-averaged coverage at prototype resolution.
    """

    images: Tensor
    boxes: Tensor
    classes: Tensor
    masks: Tensor


def _flip(image: NDArray[np.uint8], flips: int) -> NDArray[np.uint8]:
    """Return a view of the image. flips: 1 mirrors columns, 2 mirrors rows, 4 swaps both axes; sums combine."""
    if flips & 1:
        image = image[:, ::-1]
    if flips & 2:
        image = image[::-1]
    return image.swapaxes(0, 1) if flips & 4 else image


def _read_objects(
    owners: NDArray[np.uint8], labels: NDArray[np.int16], proto_side: int
) -> list[tuple[int, list[float], Tensor]]:
    """Return class, box and mask of each visible object.

    Boxes are normalised xyxy. A mask is (proto_side, proto_side), coverage 0..1.
    """
    side = owners.shape[0]
    objects = []
    for index, label in enumerate(labels):
        mask = owners == index + 1
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        if label < 0 or len(rows) < 2 or len(columns) < 2:
            continue
        box = [columns[0] / side, rows[0] / side, (columns[-1] + 1) / side, (rows[-1] + 1) / side]
        coverage = cv2.resize(mask.astype(np.float32), (proto_side, proto_side), interpolation=cv2.INTER_AREA)
        objects.append((int(label), box, torch.from_numpy(coverage)))
    return objects


def batches(folder: Path, kind: str, seed: int, size: int, first: int, count: int) -> Iterator[Batch]:
    """Yield the batches first .. first+count-1 of an endless, seeded, shuffled and augmented stream."""
    images = np.load(folder / f"{kind}-images.npy", mmap_mode="r")
    owners = np.load(folder / f"{kind}-owners.npy", mmap_mode="r")
    classes = np.load(folder / f"{kind}-classes.npy", mmap_mode="r")
    proto_side = (images.shape[1] + 6 - 7) // 4 + 1
    # An epoch omits the last incomplete batch, so that the number of a batch determines the batch's images.
    per_epoch = len(images) // size
    for number in range(first, first + count):
        epoch, slot = divmod(number, per_epoch)
        order = np.random.default_rng([seed, 1, epoch]).permutation(len(images))
        rng = np.random.default_rng([seed, 2, number])
        batch_images, batch_objects = [], []
        for i in order[slot * size : (slot + 1) * size]:
            flips = int(rng.integers(8))
            gain, lift = rng.uniform(0.8, 1.2, 3) * rng.uniform(0.8, 1.2), rng.uniform(-20, 20)
            image = _flip(images[i], flips) * gain.astype(np.float32) + np.float32(lift)
            batch_images.append(np.clip(image, 0, 255).astype(np.uint8))
            batch_objects.append(_read_objects(_flip(owners[i], flips), classes[i], proto_side))
        most = max(1, max(len(objects) for objects in batch_objects))
        boxes = torch.zeros(size, most, 4)
        labels = torch.full((size, most), -1)
        masks = torch.zeros(size, most, proto_side, proto_side)
        for b, objects in enumerate(batch_objects):
            for g, (label, box, coverage) in enumerate(objects):
                labels[b, g], boxes[b, g], masks[b, g] = label, torch.tensor(box), coverage
        yield Batch(as_images(np.stack(batch_images)), boxes, labels, masks)


def _prefetch(stream: Iterator[Batch]) -> Iterator[Batch]:
    """Prepare the next batch in a thread during the training step."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, stream, None)
        while (batch := waiting.result()) is not None:
            waiting = pool.submit(next, stream, None)
            yield batch


# ---- matching and losses --------------------------------------------------------------------------


def _pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU, (..., g, n), of boxes (..., g, 4) with boxes (n, 4), xyxy."""
    low = torch.maximum(a[..., :, None, :2], b[:, :2])
    high = torch.minimum(a[..., :, None, 2:], b[:, 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    area_a = (a[..., 2:] - a[..., :2]).prod(-1)[..., :, None]
    area_b = (b[:, 2:] - b[:, :2]).prod(-1)
    return intersection / (area_a + area_b - intersection).clamp(min=1e-9)


@dataclass(frozen=True)
class Match:
    """An assignment of priors. thing (b, n) int64: index of the prior's thing, -1 background, -2 ignored."""

    thing: Tensor


def match(batch: Batch, priors_xyxy: Tensor, forced: int = 6) -> Match:
    """Assign priors to things.

    A prior is positive with an IoU over 0.5. A thing's `forced` best priors are positive too, if their IoU is at least
    3/4 of the thing's best IoU. Square priors reach an IoU of only about 0.2 with a level toothbrush, so a fixed
    threshold would never train the toothbrush.
    """
    iou = _pairwise_iou(batch.boxes, priors_xyxy).masked_fill((batch.classes < 0)[..., None], -1)
    best_iou, thing = iou.max(1)
    thing = torch.where(best_iou > 0.5, thing, torch.where(best_iou < 0.4, -1, -2))
    top_iou, top_prior = iou.topk(forced, 2)
    relative_iou = top_iou / top_iou[..., :1].clamp(min=1e-6)
    is_forced = (relative_iou >= 0.75) & (top_iou[..., :1] > 0)
    relative_iou = torch.where(is_forced, relative_iou, torch.zeros_like(relative_iou))
    forced_iou, forced_thing = torch.zeros_like(iou).scatter_(2, top_prior, relative_iou).max(1)
    return Match(torch.where(forced_iou > 0, forced_thing, thing))


def _giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU (k,) and GIoU (k,) of corresponding rows of xyxy boxes, (k, 4) each."""
    intersection = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    union = (a[:, 2:] - a[:, :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1) - intersection
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1)
    iou = intersection / union.clamp(min=1e-9)
    return iou, iou - (hull - union) / hull.clamp(min=1e-9)


def _class_loss(logits: Tensor, labels: Tensor, ignored: Tensor, quality: Tensor, positives: int) -> Tensor:
    """Return softmax cross-entropy with targets (quality, 1 - quality) on (class, background); negatives mined 3:1."""
    log_p = F.log_softmax(logits, -1)
    background = -log_p[..., 0]
    foreground = -log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    positive = labels > 0
    loss_positive = (quality * foreground + (1 - quality) * background)[positive].sum()
    hardness = background.detach().masked_fill(positive | ignored, -1)
    negatives = (3 * positive.sum(1)).clamp(min=8)
    ranked, order = hardness.topk(int(negatives.max()), 1)
    mined = (torch.arange(ranked.shape[1]) < negatives[:, None]) & (ranked >= 0)
    return (loss_positive + background.gather(1, order)[mined].sum()) / positives


def _mask_losses(
    outputs: RawOutputs, batch: Batch, thing: Tensor, per_image: int, pick: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return BCE and dice losses of the assembled masks inside each thing's box.

    At most per_image priors per image count.
    """
    chance = torch.rand(thing.shape, generator=pick).masked_fill(thing < 0, -1)
    drawn, prior = chance.topk(per_image, 1)
    valid = drawn >= 0
    owner = thing.gather(1, prior).clamp(min=0)
    coefficients = outputs.coefficients.gather(1, prior[..., None].expand(-1, -1, outputs.coefficients.shape[-1]))
    b, _, p, _ = outputs.prototypes.shape
    logits = torch.bmm(coefficients.float(), outputs.prototypes.flatten(2).float()).view(b, per_image, p, p)[valid]
    row = torch.arange(b)[:, None].expand_as(owner)[valid]
    target, box = batch.masks[row, owner[valid]], batch.boxes[row, owner[valid]] * p
    grid = torch.arange(p) + 0.5
    inside_x = (grid >= box[:, 0:1] - 1) & (grid <= box[:, 2:3] + 1)
    inside_y = (grid >= box[:, 1:2] - 1) & (grid <= box[:, 3:4] + 1)
    inside = (inside_y[:, :, None] & inside_x[:, None, :]).float()
    cells = inside.sum((1, 2)).clamp(min=1)
    bce = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * inside).sum((1, 2)) / cells
    shape = torch.sigmoid(logits) * inside
    overlap = (shape * target).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (shape.square().sum((1, 2)) + (target * inside).square().sum((1, 2)) + 1)
    return bce.mean(), dice.mean()


def losses(outputs: RawOutputs, batch: Batch, priors: Tensor, trust: float, pick: torch.Generator) -> dict[str, Tensor]:
    """Return all weighted loss terms of a batch.

    trust: 0..1, how far a positive's class target follows its box IoU (0: target 1; 1: target = IoU).
    """
    corners = torch.cat([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1)
    thing = match(batch, corners).thing
    positive = thing >= 0
    row, prior = positive.nonzero(as_tuple=True)
    owner = thing[row, prior]
    count = max(len(row), 1)
    truth, offsets, priors_of = batch.boxes[row, owner], outputs.offsets[row, prior].float(), priors[prior]
    iou, giou = _giou(decode_boxes(offsets.clamp(-20, 20), priors_of), truth)
    labels = torch.zeros_like(thing)
    labels[row, prior] = batch.classes[row, owner] + 1
    quality = torch.ones(thing.shape)
    quality[row, prior] = 1 - trust * (1 - iou.detach().clamp(0, 1))
    bce, dice = _mask_losses(outputs, batch, thing, 14, pick)
    semantic = torch.zeros_like(outputs.semantic, dtype=torch.float32)
    small = F.interpolate(batch.masks, size=semantic.shape[-2:], mode="area")
    for g in range(batch.classes.shape[1]):
        images = (batch.classes[:, g] >= 0).nonzero()[:, 0]
        classes = batch.classes[images, g]
        semantic[images, classes] = torch.maximum(semantic[images, classes], small[images, g])
    return {
        "class": _class_loss(outputs.logits.float(), labels, thing == -2, quality, count),
        "offset": F.smooth_l1_loss(offsets, encode_boxes(truth, priors_of), reduction="sum") / count,
        "giou": 2.0 * (1 - giou).sum() / count,
        "mask": 3.0 * bce,
        "dice": 1.0 * dice,
        "semantic": 10.0 * F.binary_cross_entropy_with_logits(outputs.semantic.float(), semantic),
    }


# ---- the loop -------------------------------------------------------------------------------------


def _learning_rate(schedule: Schedule, step: int) -> float:
    """Return the learning rate: a linear warm-up, then a cosine down to 1 %."""
    warm_up_steps = schedule.warm_up * schedule.steps
    if step < warm_up_steps:
        return schedule.learning_rate * (step + 1) / warm_up_steps
    progress = (step - warm_up_steps) / (schedule.steps - warm_up_steps)
    return schedule.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def _optimiser(net: StickerNet, schedule: Schedule) -> torch.optim.AdamW:
    matrices = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in net.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.99))


def _training_batches(schedule: Schedule, data: Path, start: int) -> Iterator[tuple[Batch, Tensor]]:
    priors = {side: priors_cxcywh(side) for side in (schedule.crop_px, INPUT_PX)}
    """Yield the batches from step `start` on, first crops, then scenes, each with its priors."""
    crop_step, scene_step = min(start, schedule.crop_steps), max(0, start - schedule.crop_steps)
    crops = batches(data, "crops", schedule.seed, schedule.crop_batch, crop_step, schedule.crop_steps - crop_step)
    scenes = batches(data, "scenes", schedule.seed, schedule.scene_batch, scene_step, schedule.scene_steps - scene_step)
    for batch in _prefetch(crops):
        yield batch, priors[schedule.crop_px]
    for batch in _prefetch(scenes):
        yield batch, priors[INPUT_PX]


def train(schedule: Schedule, work: Path, log: Callable[[str], None], processes: int = 2) -> StickerNet:
    """Train from scratch, or resume from work/checkpoint.pt; return the averaged network.

    work: folder for the drawn data (about 9 GB) and the checkpoint. log: called with one line at a time.
    """
    data, checkpoint = work / "data", work / "checkpoint.pt"
    if not (data / "drawn").exists():
        log("drawing training data")
        draw_dataset(data, "crops", schedule.crops, schedule.crop_px, schedule.seed, processes)
        draw_dataset(data, "scenes", schedule.scenes, INPUT_PX, schedule.seed, processes)
        (data / "drawn").touch()
    torch.manual_seed(schedule.seed)
    net = StickerNet().to(memory_format=torch.channels_last)
    average: StickerNet = copy.deepcopy(net)
    optimiser = _optimiser(net, schedule)
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["schedule"] != asdict(schedule):
            raise ValueError(f"{checkpoint} has another schedule: {state['schedule']}. Choose an empty folder.")
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    start_s, images = time.monotonic(), 0
    mean_losses: dict[str, float] = {}
    for step, (batch, priors) in enumerate(_training_batches(schedule, data, start), start):
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(schedule, step)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = net(batch.images.contiguous(memory_format=torch.channels_last))
        trust = 0.7 * min(1.0, max(0.0, step / schedule.steps - 0.2) / 0.4)
        terms = losses(outputs, batch, priors, trust, torch.Generator().manual_seed(schedule.seed * 1_000_003 + step))
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimiser.step()
        keep = min(schedule.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for averaged, current in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
                if averaged.is_floating_point():
                    averaged.lerp_(current, 1 - keep)
                else:
                    averaged.copy_(current)
        images += len(batch.images)
        for name, term in terms.items():
            loss = float(term.detach())
            mean_losses[name] = 0.98 * mean_losses.get(name, loss) + 0.02 * loss
        if (step + 1) % 50 == 0:
            parts = " ".join(f"{name} {value:.3f}" for name, value in mean_losses.items())
            log(f"step {step + 1}/{schedule.steps} {images / (time.monotonic() - start_s):.1f} images/s {parts}")
        if (step + 1) % schedule.checkpoint_every == 0 or step + 1 == schedule.steps:
            state = {
                "schedule": asdict(schedule), "step": step + 1, "net": net.state_dict(),
                "average": average.state_dict(), "optimiser": optimiser.state_dict(),
            }  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    return average
