"""catalogue.py: every model has its facts, and they agree with the contracts, the docs and each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from segray import config
from segray.errors import ConfigError
from segray.models import resolve
from segray.models.registry import ADAPTERS
from segray.models.zoo import CATALOGUE, File, ZooModel, find

DOCS = Path(__file__).parents[2] / "docs" / "models"
FILES = [file for entry in CATALOGUE.values() for source in entry.sources for file in source.files]
THE_FIVE = {
    "mask_rcnn_inception_v2_coco",
    "mask_rcnn_inception_resnet_v2_atrous_coco",
    "mask_rcnn_inception_resnet_v2_1024x1024",
    "yolact-resnet50-fpn-pytorch",
    "instance-segmentation-security-0033",
}


def test_every_contract_has_an_entry_and_every_entry_a_contract() -> None:
    assert set(CATALOGUE) == set(ADAPTERS)
    assert set(CATALOGUE) >= THE_FIVE
    assert all(name == entry.name for name, entry in CATALOGUE.items())


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)
def test_an_entry_speaks_of_the_forms_of_its_contract(entry: ZooModel) -> None:
    forms = ADAPTERS[entry.name].forms
    assert entry.form in forms
    assert set(entry.outputs) == set(forms)
    for name, form in forms.items():
        assert set(form.outputs) == set(entry.outputs[name])
        assert form.image.name in entry.inputs


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)
def test_a_user_finds_a_page_and_a_way_to_get_it(entry: ZooModel) -> None:
    page = (DOCS / entry.page).read_text("utf-8")
    assert entry.name in page
    assert f"]({entry.page})" in (DOCS / "README.md").read_text("utf-8")
    assert resolve.HOW_TO_GET[entry.name] == entry.how_to_get
    if entry.sources:
        assert f"segray models pull {entry.name}" in entry.how_to_get


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)
def test_a_page_repeats_the_facts_rightly(entry: ZooModel) -> None:
    page = (DOCS / entry.page).read_text("utf-8")
    for each in entry.accuracy:
        assert f"{each.box_ap:.2f}".rstrip("0").rstrip(".") in page
        assert f"{each.mask_ap:.2f}".rstrip("0").rstrip(".") in page
    digests = set(re.findall(r"\b[0-9a-f]{64,96}\b", page))
    assert digests <= {digest for file in FILES for digest in (file.sha256, file.sha384)}


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)
def test_the_configuration_on_a_page_can_be_copied(entry: ZooModel, tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n([\s\S]*?)```", (DOCS / entry.page).read_text("utf-8"))
    assert len(blocks) == 1
    (tmp_path / "c.yaml").write_text(blocks[0])
    chosen = config.load(tmp_path / "c.yaml").model
    assert CATALOGUE[chosen.name].page == entry.page
    assert chosen.path == (f"models/{chosen.name}/{chosen.name}.xml" if entry.sources else None)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_checksums_and_addresses_are_well_formed(file: File) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", file.sha256 or "0" * 64)
    assert re.fullmatch(r"[0-9a-f]{96}", file.sha384 or "0" * 96)
    assert file.urls
    assert all(re.fullmatch(r"https?://[^\s/]+/\S+", url) for url in file.urls)
    assert all(file.name in url for url in file.urls) or "kaggle" in file.urls[0]
    assert file.sha256 or all("tf2" in url or "kaggle" in url for url in file.urls)


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)
def test_the_model_is_among_what_is_fetched(entry: ZooModel) -> None:
    for source in entry.sources:
        assert source.archived or source.model in {file.name for file in source.files}
        assert not source.archived or len(source.files) == 1


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="mean 'instance-segmentation-security-0033'"):
        find("security-0033")


def test_0033_names_its_loadable_sibling() -> None:
    assert re.search(
        r"IR v5[\s\S]*instance-segmentation-security-0083",
        resolve.HOW_TO_GET[find("instance-segmentation-security-0033").name],
    )
