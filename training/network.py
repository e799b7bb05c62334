"""The sticker network: a small YOLACT in PyTorch, and its export to OpenVINO.

Knows layers, priors and the export. Knows nothing of data, losses or training. Needs the `train` extra.
The outputs are YOLACT's (Bolya et al., "YOLACT: Real-time Instance Segmentation", ICCV 2019): 550x550 input,
19,248 square priors on five levels, 32 prototypes at 138x138. The backbone is segray's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segray.models.openvino import ov
from segray.synthetic.shapes import STICKERS

INPUT_PX = 550
PROTOTYPES = 32
CLASSES = len(STICKERS)
VARIANCES = (0.1, 0.2)
STRIDES = (8, 16, 32, 64, 128)
# YOLACT-R50's prior sides at 550: scale, then sqrt(1/2) and sqrt(2) as side ratios, kept square.
PRIOR_SIDES_PX = (24.0, 48.0, 96.0, 192.0, 384.0)
_RATIOS = (1.0, math.sqrt(0.5), math.sqrt(2.0))
_MEAN, _SCALE = 127.5, 64.0


def level_sides(input_px: int) -> list[int]:
    """Return the sides of the five levels' feature maps, in cells; 550 gives 69, 35, 18, 9, 5."""
    first = ((input_px + 6 - 7) // 4 + 1 + 1) // 2
    sides = [first]
    for _ in STRIDES[1:]:
        sides.append((sides[-1] + 1) // 2)
    return sides


def priors_cxcywh(input_px: int) -> Tensor:
    """Return all priors, (n, 4) float32, centre and size relative to the input's side; n = 19,248 at 550."""
    rows = []
    for side, stride, length in zip(level_sides(input_px), STRIDES, PRIOR_SIDES_PX, strict=True):
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        # Features lie at multiples of the stride: the maps are larger than the input (69 * 8 = 552).
        x, y = (x + 0.5) * (stride / input_px), (y + 0.5) * (stride / input_px)
        priors = []
        for ratio in _RATIOS:
            size = torch.full((side, side), length * ratio / input_px)
            priors.append(torch.stack([x, y, size, size], -1))
        rows.append(torch.stack(priors, 2).reshape(-1, 4))
    return torch.cat(rows).float()


def decode_boxes(offsets: Tensor, priors: Tensor) -> Tensor:
    """Decode SSD offsets (..., n, 4) on priors (n, 4) into normalised boxes xyxy."""
    centre = priors[:, :2] + offsets[..., :2] * VARIANCES[0] * priors[:, 2:]
    size = priors[:, 2:] * torch.exp(offsets[..., 2:] * VARIANCES[1])
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def encode_boxes(boxes_xyxy: Tensor, priors: Tensor) -> Tensor:
    """Encode boxes (k, 4) on their matched priors (k, 4) as offsets (k, 4): the inverse of decode_boxes."""
    centre = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    size = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clamp(min=1e-4)
    shift = (centre - priors[:, :2]) / (VARIANCES[0] * priors[:, 2:])
    return torch.cat([shift, torch.log(size / priors[:, 2:]) / VARIANCES[1]], -1)


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(inputs, outputs, 3, stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        nn.init.zeros_(self.second[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


@dataclass(frozen=True)
class RawOutputs:
    """Network outputs before softmax and box decoding; b images, n priors, p = prototype side.

    logits (b, n, 1 + classes); offsets (b, n, 4); coefficients (b, n, 32) in -1..1; prototypes (b, 32, p, p),
    non-negative; semantic (b, classes, side, side), logits used in training only.
    """

    logits: Tensor
    offsets: Tensor
    coefficients: Tensor
    prototypes: Tensor
    semantic: Tensor


class StickerNet(nn.Module):
    """The network: RGB (b, 3, s, s), values 0..255, to RawOutputs."""

    def __init__(self) -> None:
        super().__init__()
        width = 64
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 7, 4, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        self.stage2 = _Block(32, 32, 1)
        self.stage3 = nn.Sequential(_Block(32, 64, 2), _Block(64, 64, 1))
        self.stage4 = nn.Sequential(_Block(64, 128, 2), _Block(128, 128, 1))
        self.stage5 = _Block(128, 192, 2)
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in (64, 128, 192))
        self.smooth = nn.ModuleList(_conv(width, width) for _ in range(3))
        self.down = nn.ModuleList(_conv(width, width, 3, 2) for _ in range(2))
        self.tower = nn.Sequential(*[_conv(width, width) for _ in range(3)])
        anchors = len(_RATIOS)
        self.class_head = nn.Conv2d(width, anchors * (1 + CLASSES), 1)
        self.box_head = nn.Conv2d(width, anchors * 4, 1)
        self.mask_head = nn.Conv2d(width, anchors * PROTOTYPES, 1)
        self.proto_deep = nn.Sequential(_conv(width, 64), nn.Conv2d(64, 32, 1))
        self.proto_fine = nn.Conv2d(32, 32, 1)
        self.proto_out = nn.Sequential(_conv(32, 48), nn.Conv2d(48, PROTOTYPES, 1))
        self.semantic_head = nn.Conv2d(width, CLASSES, 1)
        with torch.no_grad():
            prior = self.class_head.bias.view(anchors, 1 + CLASSES)
            prior.zero_()
            prior[:, 0] = 5.0

    def forward(self, images: Tensor) -> RawOutputs:
        x = (images - _MEAN) / _SCALE
        c2 = self.stage2(self.stem(x))
        c3 = self.stage3(c2)
        c4 = self.stage4(c3)
        c5 = self.stage5(c4)
        deep = self.laterals[2](c5)
        levels = [deep]
        for lateral, features in ((self.laterals[1], c4), (self.laterals[0], c3)):
            deep = lateral(features) + F.interpolate(deep, size=features.shape[-2:], mode="nearest")
            levels.insert(0, deep)
        levels = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]
        for down in self.down:
            levels.append(down(levels[-1]))
        proto = F.interpolate(self.proto_deep(levels[0]), size=c2.shape[-2:], mode="bilinear", align_corners=False)
        proto = F.relu(self.proto_out(F.relu(proto + self.proto_fine(c2))))
        heads: list[list[Tensor]] = [[], [], []]
        for level in levels:
            features = self.tower(level)
            for parts, head, columns in zip(
                heads, (self.class_head, self.box_head, self.mask_head), (1 + CLASSES, 4, PROTOTYPES), strict=True
            ):
                parts.append(head(features).permute(0, 2, 3, 1).reshape(images.shape[0], -1, columns))
        logits, offsets, coefficients = (torch.cat(parts, 1) for parts in heads)
        return RawOutputs(logits, offsets, torch.tanh(coefficients), proto, self.semantic_head(levels[0]))


class _ConvertedForm(nn.Module):
    """A StickerNet in YOLACT's converted form: input BGR 0..255, outputs conf, boxes, mask and proto."""

    def __init__(self, net: StickerNet, columns: list[int]) -> None:
        super().__init__()
        self.net = net
        # The other 70 columns are untrained: weight 0 and bias -30 keep them at e^-30.
        self.spread: Tensor
        self.bias: Tensor
        spread, bias = torch.zeros(1 + CLASSES, 81), torch.full((81,), -30.0)
        for row, column in enumerate([0, *columns]):
            spread[row, column] = 1.0
            bias[column] = 0.0
        self.register_buffer("spread", spread)
        self.register_buffer("bias", bias)
        self.register_buffer("priors", priors_cxcywh(INPUT_PX))

    def forward(self, bgr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        outputs = self.net(bgr.flip(1))
        conf = torch.softmax(outputs.logits @ self.spread + self.bias, -1)
        boxes = decode_boxes(outputs.offsets, self.priors)
        return conf, boxes, outputs.coefficients, outputs.prototypes.permute(0, 2, 3, 1)


def export(net: StickerNet, columns: list[int], xml: Path) -> None:
    """Write the network as fp16 IR in YOLACT's converted form.

    columns: column 1..80 of `conf` for each sticker, in order. xml: path ending in .xml; the .bin lies beside it.
    """
    module = _ConvertedForm(net, columns).eval()
    example = torch.zeros(1, 3, INPUT_PX, INPUT_PX)
    model = ov.convert_model(module, example_input=example, input=[1, 3, INPUT_PX, INPUT_PX])
    model.inputs[0].get_tensor().set_names({"input.1"})
    for port, name in zip(model.outputs, ("conf", "boxes", "mask", "proto"), strict=True):
        port.get_tensor().set_names({name})
    ov.save_model(model, xml, compress_to_fp16=True)


def as_images(batch: np.ndarray) -> Tensor:
    """Convert (b, h, w, 3) uint8 RGB to (b, 3, h, w) float32 in channels-last memory."""
    return torch.from_numpy(batch).permute(0, 3, 1, 2).float()
