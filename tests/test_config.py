"""Configuration: every file loads, every mistake is named."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from properties import tried

from segray import config
from segray.errors import ConfigError
from segray.storage.options import StorageOptions

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


def test_the_store_of_a_configuration_without_keys_is_the_store_without_options() -> None:
    assert StorageOptions(**config.validate(MINIMAL, "").storage.model_dump()) == StorageOptions()


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
        ({"model": {"name": "stickers", "conf": 0.5}}, "model.conf", "model.score_threshold"),
        ({"imgsz": 640}, "imgsz", "model.size"),
        ({"output": {}}, "lacks output.root", "--set output.root"),
        ({"model": {"name": "stickers", "precision": "f8"}}, "model.precision", "reference.yaml"),
        (
            {"model": {"name": "stickers", "class_thresholds": {"bird": 2}}},
            "model.class_thresholds.bird",
            "reference.yaml",
        ),
        ({"model": {"name": "stickers", "labels": {}}}, "model.labels", "reference.yaml"),
        ({"max_failed_fraction": 2}, "max_failed_fraction", "reference.yaml"),
        ({"source": {"uri": "a", "failed": "drop"}}, "source.failed", "reference.yaml"),
        ({"source": {"uri": "a", "retry_unreachable_after": "a day"}}, "is a number of seconds, or", "reference.yaml"),
        ({"source": {"uri": "a", "retry_unreachable_after": -1}}, "source.retry_unreachable_after", "reference.yaml"),
    ],
)
def test_a_mistake_is_named_with_the_way_out(change: dict[str, Any], message: str, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.validate({**MINIMAL, **change}, "run.yaml")
    assert message in caught.value.what
    assert advice in caught.value.hint
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


TEXTS = ("/data/run #3", "2024_01", "*.jpg", "@labels", "~", "a: b", "[x", "010", "yes", "12:30", "{a}", "x'y", "&a")


@pytest.mark.parametrize("text", TEXTS)
def test_an_override_of_a_text_is_the_text_itself(text: str) -> None:
    texts = ["source.uri", "source.base", "source.members", "model.name", "model.path", "cluster.address"]
    given_texts = {**MINIMAL, "workers": [{}], "model": {"name": "stickers", "labels": {1: "bolt"}}}
    loaded = config.validate(
        given_texts, "", [*(f"{key}={text}" for key in texts), f"workers.0.device={text}", f"model.labels.1={text}"]
    )
    values = loaded.model_dump()
    assert [values[key.split(".")[0]][key.split(".")[1]] for key in texts] == [text] * len(texts)
    assert loaded.workers[0].device == text
    assert loaded.model.labels == {1: text}


def test_an_override_of_a_text_may_be_quoted_or_null() -> None:
    quoted = ["output.root='a b'", 'source.uri="photos"', "source.members=null", "source.base="]
    loaded = config.validate({**MINIMAL, "source": {"uri": "a", "members": "*", "base": "b"}}, "", quoted)
    assert (loaded.output.root, loaded.source.uri) == ("a b", "photos")
    assert (loaded.source.members, loaded.source.base) == (None, None)
    assert config.validate(MINIMAL, "", ["output.root=null"]).output.root == "null"
    with pytest.raises(ConfigError, match=r"output\.root"):
        config.validate(MINIMAL, "", ["output.root="])


MISTYPED = {
    "s3:/bucket/x": "s3://bucket/x", "S3:/b": "s3://b", "gs:/x": "gs://x", "dbfs:/x": "/dbfs/x", "file:/x": "/x",
    "file://x/y": "/x/y", "FILE:///x": "/x", "s3:b/x": "s3://b/x", "s3:///x": "s3://BUCKET/x", "foo:/x": "./foo:/x",
}  # fmt: skip
# What deltalake 1.6.6 was seen to read as another place, or to refuse.
UNUSABLE = (
    "s3://b/q?x", "s3://b/h#1", "s3://b/a%20b", "/data/a%20b", "s3://b//x", "s3://b/x//", "s3://b/a//b", "a\\b",
    "s3://b/a\\b", "set[1]", "s3://b/[x]", "a|b", "a^b", "a\nb", "s3://b/./a", "s3://b/a/..", "memory://a", "ftp://h/x",
    "https://h/x",
)  # fmt: skip
USABLE = (
    "a b", "what?", "a#b", "100%", "a%zz", "a//b/", "../x", "é", "s3://b", "s3://b/", "s3://b/x/", "s3://b/a:b", "~/x",
    "abfss://container@account.dfs.core.windows.net/x", "gs://b/a..b", "./s3:/x", "file:///data/x",
)  # fmt: skip


@pytest.mark.parametrize("text", ["007", "1e5", "true", "null", "2026-11-20", "1_0", "0x1F"])
def test_a_class_name_that_yaml_reads_as_another_type_is_refused_with_the_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(
        f"source: {{uri: a}}\noutput: {{root: b}}\nmodel: {{name: stickers, labels: {{1: {text}}}}}\n"
    )
    if isinstance(yaml.safe_load(text), str):
        assert config.load(tmp_path / "run.yaml").model.labels == {1: text}
        return
    with pytest.raises(ConfigError, match="is not text") as caught:
        config.load(tmp_path / "run.yaml")
    assert "model.labels.1 in quotes" in caught.value.hint


@pytest.mark.parametrize("key", ["source.uri", "source.base", "output.root"])
@pytest.mark.parametrize("address", MISTYPED)
def test_a_mistyped_scheme_is_refused(key: str, address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.validate(MINIMAL, "run.yaml", [f"{key}={address}"])
    assert caught.value.what.startswith(key)
    assert caught.value.found == repr(address)
    assert MISTYPED[address] in caught.value.hint


@pytest.mark.parametrize("root", UNUSABLE)
def test_a_root_that_deltalake_would_change_is_refused(root: str) -> None:
    with pytest.raises(ConfigError, match=r"^output\.root: .*deltalake"):
        config.validate({**MINIMAL, "output": {"root": root}}, "run.yaml")
    if root.partition("://")[0] not in ("memory", "ftp", "https"):
        assert config.validate({**MINIMAL, "source": {"uri": root}}, "run.yaml").source.uri == root


@pytest.mark.parametrize("root", USABLE)
def test_other_roots_are_taken_as_they_are(root: str) -> None:
    assert config.validate({**MINIMAL, "output": {"root": root}}, "run.yaml").output.root == root


def test_a_relative_root_is_refused_for_the_folder_it_starts_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a%20b").mkdir()
    monkeypatch.chdir(tmp_path / "a%20b")
    with pytest.raises(ConfigError, match="%20"):
        config.validate(MINIMAL, "run.yaml")


def test_a_missing_file_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        config.load("nowhere.yaml")


NO_YAML = ("[" * 5_000, "as_of: 2026-13-45", "? [1, 2]\n: 3", "a: *b", "a: \0", "a: b: c", "\t- 1")
NO_MAPPING = {"- 1": "list", "text": "str", "5": "int", "2026-01-01": "date"}


@pytest.mark.parametrize("text", NO_YAML, ids=lambda text: text[:20])
def test_a_text_that_is_no_yaml_is_refused_with_the_reason(tmp_path: Path, text: str) -> None:
    refused = refusal(tmp_path, text)
    assert refused.what == "the configuration is not valid YAML"
    assert refused.found


@pytest.mark.parametrize("text", NO_MAPPING)
def test_yaml_that_is_no_mapping_is_refused_with_its_kind(tmp_path: Path, text: str) -> None:
    refused = refusal(tmp_path, text)
    assert refused.what == "the configuration must be a mapping of keys"
    assert refused.found == NO_MAPPING[text]
    assert "reference.yaml" in refused.hint


def refusal(folder: Path, text: str) -> ConfigError:
    file = folder / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    assert caught.value.where == str(file)
    return caught.value


WITH_POOL: dict[str, Any] = {**MINIMAL, "workers": [{"device": "CPU"}]}
KEYS = sorted(config._keys(config.Config))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.dates(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(KEYS), VALUES)
@tried(500)
def test_any_value_of_a_key_is_taken_or_refused_by_the_name_of_the_key(key: str, value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(yaml.safe_dump(with_value(key, value)))
        try:
            taken = config.load(file)
        except ConfigError as exc:
            assert key in exc.what.replace(".0", "")
            assert exc.hint
            return
    json.dumps(taken.model_dump(mode="json"))
    assert config.validate(taken.model_dump(), "") == taken


def with_value(key: str, value: Any) -> dict[str, Any]:
    """Return a configuration with this value under a dotted key; lists have one entry."""
    values: dict[str, Any] = {**WITH_POOL, "plan": {"nodes": [{"name": "a", "cpus": 1}]}}
    section = values = copy.deepcopy(values)
    *parents, last = key.split(".")
    for name in parents:
        child = section.setdefault(name, {"size": 64} if name == "tiles" else {})
        section = child[0] if isinstance(child, list) else child
    section[last] = value
    return values


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(0, 0), (1.5, 1.5), ("90", 90), ("90 s", 90), ("2min", 120), ("1.5 h", 5400), ("7 d", 604_800)],
)
def test_a_duration_is_seconds_or_a_number_with_a_unit(value: Any, seconds: float) -> None:
    source = {"uri": "a", "retry_unreachable_after": value}
    assert config.validate({**MINIMAL, "source": source}, "").source.retry_unreachable_after == seconds


def test_the_digest_follows_the_values() -> None:
    one, same = config.validate(MINIMAL, ""), config.validate(dict(MINIMAL), "")
    assert one.digest() == same.digest() != config.validate({**MINIMAL, "unit_images": 5}, "").digest()


@pytest.mark.parametrize("text", ["7", "17", "twelve", "true", "null", "12.5"])
def test_a_bit_depth_is_auto_or_8_to_16(text: str) -> None:
    assert config.validate(MINIMAL, "", ["image.bit_depth=12"]).image.bit_depth == 12
    assert config.validate(MINIMAL, "").image.bit_depth == "auto"
    with pytest.raises(ConfigError, match=r"image\.bit_depth: not auto, nor a whole number from 8 to 16"):
        config.validate(MINIMAL, "", [f"image.bit_depth={text}"])
