"""Configuration: every file loads, every mistake is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from segray import config
from segray.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
MINIMAL: dict[str, Any] = {"source": {"uri": "a"}, "output": {"root": "b"}, "model": {"name": "stickers"}}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert config.load(path).model.name


def test_the_reference_lists_every_key_with_its_default() -> None:
    reference = next(path for path in CONFIGS if path.stem == "reference")
    given_keys = yaml.safe_load(reference.read_text())
    built = config.load(reference).model_dump(mode="json")
    assert _keys(given_keys) == _keys(built)
    defaults = config.validate({**MINIMAL, "source": given_keys["source"], "output": given_keys["output"]}, "here")
    assert config.load(reference) == defaults


def _keys(values: Any, prefix: str = "") -> set[str]:
    if isinstance(values, list):
        return set().union(*(_keys(value, prefix) for value in values))
    if not isinstance(values, dict) or not values:
        return {prefix}
    return set().union(*(_keys(value, f"{prefix}.{name}") for name, value in values.items()))


@pytest.mark.parametrize(
    ("change", "message", "advice"),
    [
        ({"unit_image": 5}, "unknown configuration key unit_image", "unit_images"),
        ({"source": {"url": "a"}}, "unknown configuration key source.url", "source.uri"),
        ({"model": {"name": "stickers", "presicion": "f32"}}, "model.presicion", "model.precision"),
        ({"output": {}}, "lacks output.root", "--set output.root"),
        ({"model": {"name": "stickers", "precision": "f8"}}, "model.precision", "reference.yaml"),
        (
            {"model": {"name": "stickers", "class_thresholds": {"bird": 2}}},
            "model.class_thresholds.bird",
            "reference.yaml",
        ),
        ({"model": {"name": "stickers", "labels": {}}}, "model.labels", "reference.yaml"),
        ({"max_failed_fraction": 2}, "max_failed_fraction", "reference.yaml"),
    ],
)
def test_a_mistake_is_named_with_the_way_out(change: dict[str, Any], message: str, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.validate({**MINIMAL, **change}, "run.yaml")
    assert message in caught.value.what
    assert advice in caught.value.do
    assert caught.value.where == "run.yaml"


def test_overrides_reach_into_sections_and_lists(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**MINIMAL, "workers": [{"device": "CPU"}]}))
    loaded = config.load(file, ["model.precision=f32", "workers.0.threads=2", "storage.retries=0"])
    assert (loaded.model.precision, loaded.workers[0].threads, loaded.storage.retries) == ("f32", 2, 0)


@pytest.mark.parametrize("override", ["novalue", "=x", "workers.3.threads=1", "output.root.deep=1", "a=[", "unknown=1"])
def test_a_bad_override_is_refused(tmp_path: Path, override: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**MINIMAL, "workers": [{"device": "CPU"}]}))
    with pytest.raises(ConfigError):
        config.load(file, [override])


def test_a_missing_file_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        config.load("nowhere.yaml")


@given(st.text(max_size=200))
def test_any_text_loads_or_is_refused_clearly(text: str) -> None:
    try:
        config.validate(config._parse(text, "text"), "text")
    except ConfigError as exc:
        assert exc.what


def test_the_digest_follows_the_values() -> None:
    one, same = config.validate(MINIMAL, ""), config.validate(dict(MINIMAL), "")
    assert one.digest() == same.digest() != config.validate({**MINIMAL, "unit_images": 5}, "").digest()
