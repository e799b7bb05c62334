"""The order of the commands in the help, and two examples of each.

Knows command lines as text. Knows nothing of what they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer import Typer
from typer.core import TyperCommand, TyperGroup

# In the order in which people need the commands.
EXAMPLES: Mapping[str, tuple[str, str]] = {
    "quickstart": ("segray quickstart", "segray quickstart demo --count 256"),
    "label": (
        "segray label photos labels --model best_openvino_model",
        "segray label --config nightly.yaml --set model.score_threshold=0.3",
    ),
    "info": ("segray info labels", "segray info s3://labels/photos --json"),
    "sql": (
        'segray sql labels "SELECT class_name, count(*) FROM instances GROUP BY ALL"',
        "segray sql labels \"SELECT * FROM images WHERE status = 'failed'\" --format csv > failed.csv",
    ),
    "sheet": ("segray sheet labels", "segray sheet labels sheet.png --count 36 --columns 6"),
    "draw": ("segray draw labels drawn", "segray draw labels drawn --image day/photo.jpg --class person"),
    "view": ("segray view labels", "segray view s3://labels/photos --host 0.0.0.0 --port 8000 --no-browser"),
    "report": ("segray report labels", "segray report labels --truth truth.json --out s3://pages/report.html"),
    "export": (
        "segray export labels coco.json --to coco",
        "segray export labels yolo --to yolo --copy-images --split train=0.9,val=0.1",
    ),
    "evaluate": (
        "segray evaluate labels --truth truth.json",
        "segray evaluate labels/v1 --truth truth.json --against labels/v2",
    ),
    "threshold": (
        "segray threshold labels --truth truth.json --out thresholds.yaml",
        "segray threshold labels --truth truth.json --best precision=0.9 --plots plots",
    ),
    "diff": ("segray diff labels/v1 labels/v2", "segray diff labels/v1 labels/v2 --fail-if 'lost>2%'"),
    "select": (
        "segray select labels picked.json --take uncertain=50 --take random=100",
        "segray select labels picked.json --take rare=20 --to cvat --tasks tasks.xml",
    ),
    "review": (
        "segray review labels --selection picked.json --corrected corrected.json",
        "segray review labels --selection picked.json --corrected corrected.json --truth truth.json",
    ),
    "models": ("segray models list", "segray models inspect best_openvino_model"),
    "models list": ("segray models list", "segray models list --json"),
    "models inspect": ("segray models inspect best_openvino_model", "segray models inspect exported_model.xml --json"),
    "models pull": (
        "segray models pull yolact-resnet50-fpn-pytorch",
        "segray models pull mask_rcnn_inception_v2_coco --into /srv/models",
    ),
    "models show": ("segray models show stickers", "segray models show yolact-resnet50-fpn-pytorch --json"),
    "models convert": (
        "segray models convert yolact-resnet50-fpn-pytorch yolact_resnet50_54_800000.pth --out models/yolact",
        "segray models convert mask_rcnn_inception_v2_coco frozen_inference_graph.pb --out models/inception",
    ),
    "models quantize": (
        "segray models quantize stickers --images photos",
        "segray models quantize yolact-resnet50-fpn-pytorch --images photos --truth truth.json --max-loss 0.5",
    ),
    "models compare": (
        "segray models compare best_openvino_model --images photos --reference predictions.json",
        "segray models compare stickers --images photos --reference results.json --min-score 0.5 --json",
    ),
    "init": ("segray init run.yaml", "segray init --all reference.yaml"),
    "plan": ("segray plan photos labels --model best_openvino_model", "segray plan --config nightly.yaml --json"),
    "submit": (
        "segray submit --config nightly.yaml --address http://head:8265",
        "segray submit s3://raw s3://labels/v1 --model /models/best.xml --address http://head:8265 --no-wait",
    ),
    "status": ("segray status labels", "segray status s3://labels/photos --watch"),
    "verify": ("segray verify labels", "segray verify s3://labels/photos --json"),
    "maintain": ("segray maintain labels", "segray maintain labels --grace-hours 0"),
    "promote": ("segray promote labels/v2", "segray promote labels/v2 --dry-run"),
    "bench": ("segray bench", "segray bench --model best_openvino_model --images photos --only abc"),
    "version": ("segray version", "segray --version"),
}


class CommandWithExamples(TyperCommand):
    """A command whose help ends with its examples."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(ctx, formatter)


class OrderedGroup(TyperGroup):
    """A group of commands in the order of EXAMPLES."""

    def list_commands(self, ctx: Any) -> list[str]:
        prefix = _name(ctx)
        order = [name.removeprefix(prefix).strip() for name in EXAMPLES if name.startswith(prefix)]
        return sorted(self.commands, key=lambda name: order.index(name) if name in order else len(order))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(ctx, formatter)


def add_examples(*apps: Typer) -> None:
    """Give the commands of these apps a help with examples."""
    for app in apps:
        for command in app.registered_commands:
            if command.cls is TyperCommand:
                command.cls = CommandWithExamples


def _name(ctx: Any) -> str:
    """Return the command without the program's name, such as "models pull"; "" for the program itself."""
    return str(ctx.command_path).removeprefix(str(ctx.find_root().command_path)).strip()


def _write_examples(ctx: Any, formatter: Any) -> None:
    """Write the examples of a command, each on a line of its own at any width."""
    if examples := EXAMPLES.get(_name(ctx)):
        formatter.write_paragraph()
        formatter.write("Examples:\n")
        for example in examples:
            formatter.write(f"  {example}\n")
