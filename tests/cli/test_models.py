"""`segray models`, acquire.py and inspection.py, over small graphs and a server of our own."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
import test_ir_v5
from web import Web

from segray.cli import main
from segray.conversion import inspect_model, yolact
from segray.conversion import pull as acquire
from segray.conversion.inspect_model import inspect
from segray.conversion.pull import Callbacks, convert, pull
from segray.errors import ConfigError, InfrastructureError, ModelError
from segray.models import engine as runtime
from segray.models import resolve
from segray.models import zoo as catalogue
from segray.models.families import FAMILY_FACTS
from segray.models.registry import FAMILIES
from segray.models.zoo import CATALOGUE, File, ModelSource, ZooModel
from segray.storage import download

DOCS = Path(__file__).parents[2] / "docs" / "models"
HASTY = download.RetryPolicy(retries=1, pause_s=0.001, timeout_s=5)
TF, ATROUS = "mask_rcnn_inception_v2_coco", "mask_rcnn_inception_resnet_v2_atrous_coco"
HUB, YOLACT = "mask_rcnn_inception_resnet_v2_1024x1024", "yolact-resnet50-fpn-pytorch"
OLD, SIBLING = "instance-segmentation-security-0033", "instance-segmentation-security-0083"
GRAPH = graphs.frozen({name: [1, *shape] for name, shape in graphs.published(TF, "original").items()})


def archive(graph: bytes = GRAPH, path: str = f"{TF}_2018_01_28/frozen_inference_graph.pb") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo(path)
        info.size = len(graph)
        tar.addfile(info, io.BytesIO(graph))
    return out.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def published(web: Web, content: bytes, name: str = TF, **habits: Any) -> ZooModel:
    """The catalogue's entry, with its archive served here."""
    source = CATALOGUE[name].sources[0]
    url = web.put(f"/{source.files[0].name}", content, **habits)
    file = File(source.files[0].name, (url,), len(content), sha256(content))
    return replace(CATALOGUE[name], sources=(replace(source, files=(file,)),))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- pull -----------------------------------------------------------------------------------------


def test_pull_leaves_a_model_that_the_zoo_takes(web: Web, tmp_path: Path) -> None:
    steps: list[str] = []
    content = archive()
    found = pull(published(web, content), tmp_path, callbacks=Callbacks(note=steps.append))
    folder = tmp_path / TF
    assert names(folder) == ["download", f"{TF}.bin", f"{TF}.xml", "segray.json"]
    assert [step.split()[0] for step in steps] == ["fetching", "unpacking", "converting"]
    model = resolve.resolve(TF, str(found.xml))
    assert (model.form.name, found.already) == ("original", False)
    card = json.loads((folder / "segray.json").read_text())
    assert (card["contract"], card["form"], card["labels"]["90"]) == (TF, "original", "toothbrush")
    assert card["files"] == {file.name: sha256(file.read_bytes()) for file in model.files}
    assert card["source"]["files"] == {f"{TF}_2018_01_28.tar.gz": sha256(content)}


def test_the_converted_graph_computes_what_the_frozen_one_did(web: Web, tmp_path: Path) -> None:
    model = resolve.resolve(TF, str(pull(published(web, archive()), tmp_path).xml))
    engine = runtime.compile(model.path, model.form, runtime.DeviceSettings(threads=1, precision="f32"))
    picture = np.full((4, 5, 3), 2, np.uint8)
    with engine.infer(model.adapter.prepare(model.form, picture)) as outputs:
        assert (outputs["detection_masks"] == 120).all()
        assert outputs["detection_masks"].shape == (1, 100, 15, 15)


def test_pull_again_does_nothing(web: Web, tmp_path: Path) -> None:
    entry = published(web, archive())
    first = pull(entry, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / TF).rglob("*")}
    second = pull(entry, tmp_path)
    assert second == replace(first, already=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / TF).rglob("*")} == before
    assert len(web.asked) == 1


@pytest.mark.parametrize("harm", ["weights", "card", "xml"])
def test_pull_repairs_what_was_damaged_without_the_network(web: Web, tmp_path: Path, harm: str) -> None:
    entry = published(web, archive())
    first = pull(entry, tmp_path)
    if harm == "weights":
        first.xml.with_suffix(".bin").write_bytes(b"")
    elif harm == "xml":
        first.xml.unlink()
    else:
        (first.xml.parent / "segray.json").unlink()
    assert pull(entry, tmp_path) == first
    assert len(web.asked) == 1


def test_an_interrupted_download_resumes(web: Web, tmp_path: Path) -> None:
    content = archive(GRAPH)
    half = len(content) // 2
    entry = published(web, content, cuts=[half, 0, 0])
    with pytest.raises(InfrastructureError, match="resumes"):
        pull(entry, tmp_path, retry_policy=HASTY)
    assert names(tmp_path / TF) == ["download"]
    pull(entry, tmp_path, retry_policy=HASTY)
    assert web.asked[-1][1] == f"bytes={half}-"


@pytest.mark.parametrize("at", ["unpack", "save", "signature", "put"])
def test_an_interruption_leaves_no_half_model_and_the_next_call_goes_on(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    entry = published(web, archive())
    interrupt(monkeypatch, at)
    with pytest.raises(KeyboardInterrupt):
        pull(entry, tmp_path)
    assert acquire.installed_model(TF, tmp_path / TF) is None
    assert not (tmp_path / TF / "segray.json").exists()
    monkeypatch.undo()
    found = pull(entry, tmp_path)
    assert resolve.resolve(TF, str(found.xml)).form.name == "original"
    assert names(tmp_path / TF) == ["download", f"{TF}.bin", f"{TF}.xml", "segray.json"]
    assert len(web.asked) == 1


def interrupt(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Ctrl-C, in the midst of one of the steps."""

    def save(path: Path, xml: Path) -> None:
        xml.write_text("<net")
        raise KeyboardInterrupt

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    moved = Path.replace

    def move(self: Path, target: Path) -> Path:
        if self.suffix == ".xml":
            raise KeyboardInterrupt
        return moved(self, target)

    if at == "unpack":
        monkeypatch.setattr(tarfile.TarFile, "extractfile", stop)
    elif at == "put":
        monkeypatch.setattr(Path, "replace", move)
    else:
        monkeypatch.setattr(runtime, at, save if at == "save" else stop)


def test_a_tampered_archive_is_refused(web: Web, tmp_path: Path) -> None:
    entry = published(web, archive())
    web.pages[f"/{TF}_2018_01_28.tar.gz"].content = archive(GRAPH)[:-1] + b"!"
    with pytest.raises(ModelError, match="another file than expected"):
        pull(entry, tmp_path)
    assert names(tmp_path / TF / "download") == []


def test_an_archive_with_another_graph_is_refused(web: Web, tmp_path: Path) -> None:
    larger = graphs.frozen({name: [1, *shape] for name, shape in graphs.published(ATROUS, "original").items()})
    with pytest.raises(ModelError, match=r"differs from the published model[\s\S]*33, 33\], published \[\?, 15, 15\]"):
        pull(published(web, archive(larger)), tmp_path)
    with pytest.raises(ModelError, match=r"another kind: outputs num_detections"):
        pull(published(web, archive(graphs.frozen({"boxes": [1, 4]}))), tmp_path / "b")
    assert names(tmp_path / TF) == ["download", "unpacked"]


def test_an_archive_without_the_graph_says_what_it_holds(web: Web, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"does not contain mask_rcnn\S*/frozen_inference_graph\.pb[\s\S]*found: a\.pb"
    ):
        pull(published(web, archive(path="a.pb")), tmp_path)


def test_the_next_source_is_taken_when_the_first_is_gone(web: Web, tmp_path: Path) -> None:
    here = published(web, archive()).sources[0]
    gone = replace(here, files=(File("gone.tar.gz", (f"{web.root}/gone",)),))
    entry = replace(CATALOGUE[TF], sources=(gone, here))
    assert pull(entry, tmp_path, retry_policy=HASTY).form == "original"
    with pytest.raises(InfrastructureError, match=r"No address[\s\S]*/gone: HTTP 404"):
        pull(replace(entry, sources=(gone,)), tmp_path / "b", retry_policy=HASTY)


def test_two_files_of_an_ir_are_pulled(web: Web, tmp_path: Path) -> None:
    xml = graphs.ir(tmp_path / "a.xml", "im_data", (1, 3, 480, 640), graphs.published(SIBLING, "converted"))
    files = tuple(
        File(f"{SIBLING}{suffix}", (web.put(f"/{suffix}", xml.with_suffix(suffix).read_bytes()),))
        for suffix in (".xml", ".bin")
    )
    found = pull(
        replace(CATALOGUE[SIBLING], sources=(ModelSource(files, f"{SIBLING}.xml", "an IR"),)), tmp_path / "models"
    )
    assert resolve.resolve(SIBLING, str(found.xml)).form.name == "converted"
    assert f"{SIBLING}.xml.sha256" in names(found.xml.parent / "download")


def test_the_embedded_model_needs_no_pull(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"comes with segray[\s\S]*leave out model\.path"):
        pull(CATALOGUE["stickers"], tmp_path)


def test_two_pulls_at_once_do_not_meet(web: Web, tmp_path: Path) -> None:
    refused: list[str] = []

    def note(text: str) -> None:
        with pytest.raises(InfrastructureError, match="Another process writes to the folder"):
            pull(entry, tmp_path)
        refused.append(text)

    entry = published(web, archive())
    pull(entry, tmp_path, callbacks=Callbacks(note=note))
    assert len(refused) == 3


# ---- convert --------------------------------------------------------------------------------------


def test_convert_takes_a_frozen_graph(tmp_path: Path) -> None:
    (tmp_path / "graph.pb").write_bytes(GRAPH)
    found = convert(CATALOGUE[TF], tmp_path / "graph.pb", tmp_path / "out")
    assert names(tmp_path / "out") == [f"{TF}.bin", f"{TF}.xml", "segray.json"]
    assert resolve.resolve(TF, str(found.xml)).form.name == "original"


def test_convert_takes_an_owners_network_of_other_sizes(tmp_path: Path) -> None:
    larger = graphs.frozen({name: [1, *shape] for name, shape in graphs.published(ATROUS, "original").items()})
    (tmp_path / "graph.pb").write_bytes(larger)
    assert convert(CATALOGUE[TF], tmp_path / "graph.pb", tmp_path / "out").form == "original"


def test_convert_asks_for_the_form_that_files_do_not_tell(tmp_path: Path) -> None:
    xml = graphs.yolact(tmp_path / "yolact.xml")
    with pytest.raises(ConfigError, match=r"does not tell in which form[\s\S]*Set --form: 'original' if") as caught:
        convert(CATALOGUE[YOLACT], xml, tmp_path / "out")
    assert caught.value.where == str(xml)
    assert names(tmp_path / "out") == []
    assert convert(CATALOGUE[YOLACT], xml, tmp_path / "out", form="original").form == "original"


@pytest.mark.parametrize("form", [None, "original"])
def test_convert_makes_yolact_of_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any) -> None:
    def made(pth: Path, xml: Path, *, form: str) -> None:
        graphs.yolact(xml)
        (xml.parent / "segray.json").write_text(json.dumps({"contract": YOLACT, "form": form}))

    monkeypatch.setattr(yolact, "convert", made)
    (tmp_path / "y.pth").write_bytes(b"")
    found = convert(CATALOGUE[YOLACT], tmp_path / "y.pth", tmp_path / "out", form=form)
    assert found.form == resolve.resolve(YOLACT, str(found.xml)).form.name == (form or "converted")


def test_only_yolact_is_made_of_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not made from a checkpoint[\s\S]*frozen_inference_graph\.pb"):
        convert(CATALOGUE[TF], tmp_path / "y.pth", tmp_path / "out")


def test_convert_rewrites_an_old_ir(tmp_path: Path) -> None:
    found = convert(CATALOGUE[OLD], test_ir_v5.write(tmp_path, test_ir_v5.mask_rcnn()), tmp_path / "out")
    assert names(tmp_path / "out") == [f"{OLD}.bin", f"{OLD}.xml", "segray.json"]
    assert resolve.resolve(OLD, str(found.xml)).form.name == "converted"
    assert [fit.name for fit in inspect(found.xml).fits] == [OLD]


def old_ir(folder: Path) -> Path:
    xml = folder / "old.xml"
    xml.write_text('<?xml version="1.0"?><net name="m" version="5"><layers/></net>')
    xml.with_suffix(".bin").write_bytes(b"")
    return xml


def test_convert_does_not_overwrite_its_source_or_another_model(tmp_path: Path) -> None:
    source = graphs.yolact(tmp_path / f"{YOLACT}.xml")
    with pytest.raises(ModelError, match="overwrite its source"):
        convert(CATALOGUE[YOLACT], source, tmp_path, form="original")
    (tmp_path / "graph.pb").write_bytes(GRAPH)
    convert(CATALOGUE[TF], tmp_path / "graph.pb", tmp_path / "out")
    with pytest.raises(ModelError, match=r"holds another model[\s\S]*folder for this model alone"):
        convert(CATALOGUE[YOLACT], source, tmp_path / "out", form="original")
    assert acquire.installed_model(TF, tmp_path / "out")


def test_a_failed_conversion_keeps_the_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "graph.pb").write_bytes(GRAPH)
    convert(CATALOGUE[TF], tmp_path / "graph.pb", tmp_path / "out")
    (tmp_path / "graph.pb").write_bytes(GRAPH[:100])
    with pytest.raises(ModelError):
        convert(CATALOGUE[TF], tmp_path / "graph.pb", tmp_path / "out")
    assert acquire.installed_model(TF, tmp_path / "out")


# ---- the zoo's message ----------------------------------------------------------------------------


def test_the_zoo_says_once_and_clearly_what_to_do_about_an_old_ir(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"no longer reads IR v5[\s\S]*segray models pull {OLD}[\s\S]*{SIBLING}"):
        resolve.resolve(OLD, str(old_ir(tmp_path)))


# ---- inspect --------------------------------------------------------------------------------------


Make = Callable[[Path], Path]


def made(image: str, shape: Sequence[int], name: str, form: str, dtype: Any = np.float32) -> Make:
    return lambda folder: graphs.ir(folder / "m.xml", image, shape, graphs.published(name, form), dtype)


@pytest.mark.parametrize(
    ("make", "fits", "layout", "classes"),
    [
        (made("image_tensor", (1, -1, -1, 3), TF, "original", np.uint8), [(TF, "original")], "NHWC", None),
        (made("inputs", (1, -1, -1, 3), ATROUS, "original", np.uint8), [(ATROUS, "original")], "NHWC", None),
        (made("input_tensor", (1, -1, -1, 3), HUB, "original", np.uint8), [(HUB, "original")], "NHWC", None),
        (made("image_tensor", (1, 3, 800, 1365), TF, "converted"), [(TF, "converted")], "NCHW", 90),
        (made("image_tensor", (1, 800, 1365, 3), ATROUS, "converted", np.uint8), [(ATROUS, "converted")], "NHWC", 90),
        (made("im_data", (1, 3, 480, 640), OLD, "converted"), [(OLD, "converted"), (SIBLING, "converted")], "NCHW", 80),
        *(
            (
                made("image", (1, 3, *size_hw), f"instance-segmentation-security-{number}", "converted"),
                [(f"instance-segmentation-security-{number}", "converted")],
                "NCHW",
                None,
            )
            for number, size_hw in {
                "0002": (768, 1024), "0091": (800, 1344), "0228": (608, 608), "1039": (480, 480), "1040": (608, 608),
            }.items()
        ),
    ],
)  # fmt: skip
def test_inspect_tells_which_model_a_file_is(
    tmp_path: Path, make: Make, fits: list[tuple[str, str]], layout: str, classes: int | None
) -> None:
    found = inspect(make(tmp_path))
    assert [(fit.name, fit.form) for fit in found.fits] == fits
    assert (found.kind, found.layout, found.classes, found.nearest) == ("OpenVINO IR v11", layout, classes, None)
    assert all(not fit.unlike for fit in found.fits)
    assert bool(found.needs) == (len(fits) > 1)


def test_inspect_says_when_the_form_must_be_told(tmp_path: Path) -> None:
    xml = graphs.yolact(tmp_path / "y.xml")
    found = inspect(xml)
    assert [fit.form for fit in found.fits] == ["original", "converted"]
    assert found.needs[0].startswith("Set model.form: 'original' if the graph takes normalised RGB")
    (tmp_path / "segray.json").write_text(json.dumps({"contract": YOLACT, "form": "converted"}))
    found = inspect(xml)
    assert [fit.form for fit in found.fits] == ["converted"]
    assert found.needs == ()


def test_inspect_names_what_is_not_as_published(tmp_path: Path) -> None:
    outputs = graphs.published(YOLACT, "original") | {"conf": [1, 19248, 12]}
    found = inspect(graphs.ir(tmp_path / "y.xml", "input.1", (1, 3, 550, 550), outputs))
    assert found.fits[0].unlike == ("conf f32 [1, 19248, 12], published [19248, 81]",)
    assert found.classes == 11
    assert any("11 classes in model.labels" in need for need in found.needs)


def test_inspect_names_the_nearest_and_what_is_missing(tmp_path: Path) -> None:
    outputs = graphs.published(TF, "original")
    del outputs["detection_masks"]
    found = inspect(graphs.ir(tmp_path / "m.xml", "image_tensor", (1, -1, -1, 3), outputs))
    assert found.fits == ()
    assert found.nearest is not None
    assert (found.nearest.name, found.nearest.absent) == (TF, ("detection_masks",))
    assert "nearest is mask_rcnn_inception_v2_coco" in text(found)


def test_inspect_refuses_an_image_of_another_kind(tmp_path: Path) -> None:
    xml = graphs.ir(tmp_path / "y.xml", "input.1", (1, 1, 550, 550), graphs.published(YOLACT, "original"))
    found = inspect(xml)
    assert found.nearest is not None
    assert "another shape" in found.nearest.absent[0]


def text(found: inspect_model.Inspection) -> str:
    from segray.cli.models import describe_inspection

    return describe_inspection(found)


def test_inspect_of_an_old_ir_names_the_way_out(tmp_path: Path) -> None:
    found = inspect(old_ir(tmp_path))
    assert found.kind == "OpenVINO IR v5"
    assert f"segray models convert {OLD} {tmp_path / 'old.xml'} --out DIR" in found.needs[0]
    assert SIBLING in found.needs[0]


def test_inspect_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "graph.pb").write_bytes(GRAPH)
    found = inspect(tmp_path / "graph.pb")
    assert (found.kind, [fit.name for fit in found.fits]) == ("TensorFlow frozen graph", [TF])
    (tmp_path / "w.pth").write_bytes(b"")
    assert "segray models convert" in inspect(tmp_path / "w.pth").needs[0]
    (tmp_path / "w.tflite").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot read files of this kind"):
        inspect(tmp_path / "w.tflite")
    with pytest.raises(ModelError, match="does not exist"):
        inspect(tmp_path / "absent.pth")


# ---- the command ----------------------------------------------------------------------------------


def test_list_has_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["models", "list"]) == 0
    families, models = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    assert [line.split()[0] for line in models[1:]] == list(CATALOGUE)
    assert [line.split(":")[0] for line in families[1:] if not line.startswith(" ")] == list(FAMILY_FACTS)
    assert main.run(["models", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed["models"]] == list(CATALOGUE)
    assert [entry["name"] for entry in listed["families"]] == list(FAMILY_FACTS)


def test_every_family_is_listed_with_a_page_that_says_its_licence_and_how_to_get_it() -> None:
    assert set(FAMILY_FACTS) == set(FAMILIES)
    for family in FAMILY_FACTS.values():
        page = " ".join((DOCS / family.page).read_text("utf-8").split())
        assert family.page == "geti.md" or family.licence.split()[0].rstrip(";,") in page
        command = re.match(r"(yolo export|python -c|getitune export) ?\S*", family.how_to_get)
        assert command is None or command[0] in page
        assert f"]({family.page})" in (DOCS / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", CATALOGUE)
def test_show_has_every_fact(capsys: pytest.CaptureFixture[str], name: str) -> None:
    entry = CATALOGUE[name]
    assert main.run(["models", "show", name]) == 0
    shown = capsys.readouterr().out
    for fact in (entry.what, entry.licence, entry.command, entry.how_to_get, *entry.errors, f"  name: {name}"):
        assert fact in shown
    for file in (file for source in entry.sources for file in source.files):
        assert all(fact in shown for fact in (*file.urls, file.sha256, file.sha384) if fact)
    assert main.run(["models", "show", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == name


def test_an_unknown_name_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["models", "show", "yolact"]) == 2
    assert f"mean '{YOLACT}'" in capsys.readouterr().err


def test_inspect_takes_the_name_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["models", "inspect", "stickers"]) == 0
    assert "stickers.xml: OpenVINO IR" in capsys.readouterr().out
    assert main.run(["models", "inspect", YOLACT]) == 2
    assert f"segray models pull {YOLACT}" in capsys.readouterr().err
    graphs.yolact(tmp_path / "models" / YOLACT / f"{YOLACT}.xml")
    assert main.run(["models", "inspect", YOLACT]) == 0
    assert main.run(["models", "inspect", "sticker"]) == 2
    assert "mean 'stickers'" in capsys.readouterr().err


def test_inspect_exits_2_if_nothing_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["models", "inspect", str(graphs.yolact(tmp_path / "y.xml")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"][0]["name"] == YOLACT
    assert main.run(["models", "inspect", str(old_ir(tmp_path))]) == 2
    assert SIBLING in capsys.readouterr().out


def test_pull_and_convert_end_with_a_configuration(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(catalogue.CATALOGUE, TF, published(web, archive()))  # type: ignore[arg-type]
    assert main.run(["models", "pull", TF, "--into", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert f"  path: {tmp_path / TF / TF}.xml" in told.out
    assert "converting" in told.err
    assert main.run(["models", "pull", TF, "--into", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["already"] is True
    shutil.rmtree(tmp_path / TF)
    (tmp_path / "graph.pb").write_bytes(GRAPH)
    arguments = ["models", "convert", TF, str(tmp_path / "graph.pb"), "--out", str(tmp_path / "out"), "--json"]
    assert main.run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["xml"] == str(tmp_path / "out" / f"{TF}.xml")


def test_progress_of_a_download_is_told_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from segray._system.streams import tell

    monkeypatch.setattr(download, "_LINE_S", 0.0)
    download.ProgressLines(tell)(3_000_000, 178_000_000)
    download.ProgressLines(tell)(3_000_000, None)
    assert capsys.readouterr().err == "  3 of 178 MB\n  3 of ? MB\n"
