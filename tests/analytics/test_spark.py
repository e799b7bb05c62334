"""The recipe for Spark of docs/analytics.md, as it stands there. Runs where pyspark and Java are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import label_sets
import pytest

import segray
from segray.label_set import maintenance
from segray.models.coco_labels import COCO_NAMES
from segray.storage.store import StorageOptions

pytestmark = pytest.mark.integration
pytest.importorskip("pyspark", reason="the recipe is run where pyspark is")
PAGE = Path(__file__).parents[2] / "docs" / "analytics.md"


def run_recipe(folder: Path, program: str) -> str:
    """Run a program beside the folder `labels`; return what it prints."""
    (folder / "recipe.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "recipe.py"],
        cwd=folder,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable, "PYSPARK_SUBMIT_ARGS": "--master local[1] pyspark-shell"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not (os.environ.get("JAVA_HOME") or shutil.which("java")), reason="Spark needs Java")
def test_spark_sees_the_rows_of_the_snapshot_after_replacement_and_compaction(tmp_path: Path) -> None:
    root, scenes = tmp_path / "labels", label_sets.stickers(3)
    odd = ("007", "болт 1", "a/b", "null", "100%", "hard_hat")
    seen = sorted({class_id for image in scenes.values() for class_id, _, _ in image.found})
    classes = {**COCO_NAMES, **dict(zip(seen, odd, strict=False))}
    for key, image in scenes.items():
        label_sets.write(root, {key: image}, classes=classes)
    first = min(scenes)
    changed = replace(scenes[first], found=scenes[first].found[:1])
    label_sets.write(root, {first: changed}, classes=classes)
    maintenance.maintain(
        str(root), StorageOptions(), limits=maintenance.CompactionThresholds(files=2)
    )  # Replaced files stay a day.
    rows = segray.scan(str(root)).count_rows()
    recipe = PAGE.read_text(encoding="utf-8").split("## Spark")[1].split("```python\n")[1].split("```")[0]
    told = """
print("counted", instances.count(), images.count(), instances.where(rle_area("rle") == col("area")).count())
pairs = instances.alias("a").join(instances.alias("b"), ["image_key", "instance"])
print("alike", pairs.where(rle_iou(col("a.rle"), col("b.rle")) == 1).count())
print("folder", spark.read.parquet("labels/instances").count() > instances.count())
print("class", dict(instances.dtypes)["class"])
print("values", sorted(tuple(row) for row in instances.select("class_name", "class").distinct().collect()))
"""
    output = run_recipe(tmp_path, recipe + told)
    pairs = segray.scan(str(root)).to_table(columns=["class_name", "class"]).to_pylist()
    values = sorted({(row["class_name"], row["class"]) for row in pairs})
    assert {("007", "007"), ("болт 1", "болт_1")} & set(values)
    assert f"counted {rows} 3 {rows}\nalike {rows}\nfolder True\nclass string\nvalues {values}\n" in output


@pytest.mark.skipif(not (os.environ.get("JAVA_HOME") or shutil.which("java")), reason="Spark needs Java")
def test_spark_reads_a_label_set_without_any_instance(tmp_path: Path) -> None:
    label_sets.write(tmp_path / "labels", {"a": label_sets.Image((8, 10))})
    recipe = PAGE.read_text(encoding="utf-8").split("## Spark")[1].split("```python\n")[1].split("```")[0]
    told = "print('counted', instances.count(), images.count(), dict(instances.dtypes)['score'])\n"
    assert "counted 0 1 float\n" in run_recipe(tmp_path, recipe + told)
