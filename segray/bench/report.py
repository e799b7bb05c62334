"""The record of a benchmark, with stable keys, and the record as a table.

Knows medians and ratios. Knows nothing of how the values were measured. Each ratio is computed within a round, because
the machine may change between rounds. The record holds the median of the ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from segray.bench.runner import WAYS, Measured, of
from segray.bench.workload import Workload

# Share of the CPUs. If other processes use more, images/s measure these processes and not the variants.
_QUIET = 0.05
_WRITING = ("segray", "ray_data", "script", "remote")
_OURS = ("segray", "remote")


def record(load: Workload, laps: Sequence[Measured]) -> dict[str, Any]:
    """Return the benchmark's record for programs. The keys stay the same from release to release.

    ratio_to_ceiling, ratio_to_ray_data, ratio_to_script: segray's images/s over those of the other variant, both
    without startup. ratio_remote_to_local: segray's images/s from object storage over those from files.
    ratio_with_startup: segray's images/s from the start of the command to its end, over the ceiling's.
    ratio_while_labelling: segray's images/s from the first assigned unit to the last staged unit, over the ceiling's.
    The difference to ratio_to_ceiling is the last merge and commit.
    cpu_ratio_to_ceiling: the ceiling's CPU seconds per image over those of all segray's processes. The value is what
    ratio_to_ceiling would be if no CPU ever waited. A busy machine changes this ratio little, and the others much.
    cpu_ratio_to_floor: the same over JPEG decode and inference alone, which no variant can avoid.
    others_share: variant -> share of the CPUs, 0..1, that other processes used during the timed part.
    spread: [smallest, largest] of each ratio and rate over the rounds.
    images_per_s, images_per_s_with_startup: by variant.
    cpu_s_per_image: by variant and stage; by role of process where a variant does not measure stages: driver, worker,
    ray (Ray's own processes). `all` is the sum. segray's stages are those of its labelling worker; merge is the work
    of other workers.
    peak_rss_bytes: by variant, of the driver, of the largest worker, and of all processes.
    bytes_written: by variant. startup_s: from the start of the command to the start of the timed part.
    first_unit_s, first_commit_s: from the start of the command to segray's first staged unit and first commit.
    found: content of the tables. same_instances: whether the tables hold equally many instances; None for one table.
    """
    ways = [way for way in WAYS.values() if of(laps, way)]
    rates = {way: [lap.images_per_s for lap in of(laps, way)] for way in ways}
    whole = {way: [lap.images_per_s_with_startup for lap in of(laps, way)] for way in ways if way in _WRITING}
    labelling = [
        lap.images / (lap.marks["last_unit_s"] - lap.began_s)
        for lap in of(laps, "segray")
        if "last_unit_s" in lap.marks
    ]
    ratios = {
        "ratio_to_ceiling": _ratios(rates.get("segray"), rates.get("ceiling")),
        "ratio_to_ray_data": _ratios(rates.get("segray"), rates.get("ray_data")),
        "ratio_to_script": _ratios(rates.get("segray"), rates.get("script")),
        "ratio_remote_to_local": _ratios(rates.get("remote"), rates.get("segray")),
        "ratio_with_startup": _ratios(whole.get("segray"), rates.get("ceiling")),
        "ratio_while_labelling": _ratios(labelling, rates.get("ceiling")),
    }
    cpu = {way: [sum(_parts(lap).values()) / lap.images for lap in of(laps, way)] for way in ways}
    ratios["cpu_ratio_to_ceiling"] = _ratios(cpu.get("ceiling"), cpu.get("segray"))
    ratios["cpu_ratio_to_floor"] = _ratios(cpu.get("floor"), cpu.get("segray"))
    found = {way: dict(of(laps, way)[0].found) for way in ways if way in _WRITING}
    counts = {facts.get("instances") for facts in found.values()}
    facts = {name: value for lap in laps for name, value in lap.facts.items()}
    spread = {**ratios, **{f"images_per_s.{way}": values for way, values in rates.items()}}
    return {
        **{name: _rounded(values) for name, values in ratios.items()},
        "spread": {name: [round(min(values), 4), round(max(values), 4)] for name, values in spread.items() if values},
        "images_per_s": {way: _rounded(values) for way, values in rates.items()},
        "images_per_s_with_startup": {way: _rounded(values) for way, values in whole.items()},
        "cpu_s_per_image": {way: _cpu(of(laps, way)) for way in ways},
        "others_share": {way: _one(of(laps, way), lambda lap: lap.others_share) for way in ways},
        "peak_rss_bytes": {way: _medians(of(laps, way), lambda lap: lap.peak_rss_bytes) for way in ways},
        "bytes_written": {way: _one(of(laps, way), lambda lap: lap.bytes_written) for way in found},
        "startup_s": {way: _one(of(laps, way), lambda lap: lap.began_s - lap.started_s) for way in ways},
        "first_unit_s": _since_start(of(laps, "segray"), "first_unit_s"),
        "first_commit_s": _since_start(of(laps, "segray"), "first_commit_s"),
        "found": found,
        "same_instances": len(counts) == 1 if len(found) > 1 else None,
        "images": len(load.images),
        "rounds": max((len(of(laps, way)) for way in ways), default=0),
        "threads": load.threads,
        "model": dict(load.model),
        "settings": list(load.settings),
        "facts": facts,
    }


def _ratios(mine: Sequence[float] | None, other: Sequence[float] | None) -> list[float]:
    return [a / b for a, b in zip(mine or (), other or (), strict=False)]


def _rounded(values: Sequence[float]) -> float | None:
    return round(median(values), 4) if values else None


def _one(laps: Sequence[Measured], of_lap: Callable[[Measured], float]) -> float | None:
    return _rounded([of_lap(lap) for lap in laps])


def _since_start(laps: Sequence[Measured], mark: str) -> float | None:
    return _rounded([lap.marks[mark] - lap.started_s for lap in laps if mark in lap.marks])


def _medians(laps: Sequence[Measured], of_lap: Callable[[Measured], Mapping[str, float]]) -> dict[str, float]:
    names = {name: None for lap in laps for name in of_lap(lap)}
    return {name: median(of_lap(lap).get(name, 0) for lap in laps) for name in names}


def _parts(lap: Measured) -> dict[str, float]:
    """Return CPU seconds by stage, in place of the process that ran the stages; by role if stages are unknown."""
    inside = "worker" if lap.way in _OURS else "driver"
    roles = {role: seconds for role, seconds in lap.roles.items() if role != inside or not lap.stages}
    if lap.way in _OURS and lap.stages:
        roles["merge"] = lap.roles.get("worker", 0.0) - sum(lap.stages.values())
    return {**lap.stages, **{role: seconds for role, seconds in roles.items() if seconds > 0}}


def _cpu(laps: Sequence[Measured]) -> dict[str, float]:
    by_part = _medians(laps, _parts)
    whole = median(sum(_parts(lap).values()) for lap in laps)
    return {name: round(value / laps[0].images, 5) for name, value in {**by_part, "all": whole}.items()}


# ---- for a person ---------------------------------------------------------------------------------


def describe(found: Mapping[str, Any]) -> str:
    """Return the record as a table."""
    facts, model = found["facts"], found["model"]
    rounds = f"{found['rounds']} round" + ("s" if found["rounds"] > 1 else "")
    head = (
        f"{found['images']} images, {rounds}, {model['name']}, {facts.get('precision', '?')}, "
        f"{found['threads']} threads: medians, least and most in brackets"
    )
    lines = [
        head,
        "",
        f"{'':<9} {'images/s':>22} {'with start':>10} {'CPU s/image':>11} {'peak RSS':>9} {'written':>9}",
    ]
    lines += [_line(found, way) for way in found["images_per_s"]]
    lines.append("")
    lines += [
        f"{name.replace('_', ' '):<24} {value:.3f} {_spread(found, name)}" for name, value in _ratio_values(found)
    ]
    lines.append("")
    lines += [_stages(way, parts) for way, parts in found["cpu_s_per_image"].items()]
    lines += [f"{way}: {_contents(table, found['images'])}" for way, table in found["found"].items()]
    if (most := max(found["others_share"].values())) > _QUIET:
        lines.append(f"warning: other processes took up to {most:.0%} of the processors; trust CPU seconds alone")
    if found["same_instances"] is False:
        lines.append("warning: the ways did not find the same instances")
    return "\n".join(lines)


def _line(found: Mapping[str, Any], way: str) -> str:
    rate = "" if way == "floor" else f"{found['images_per_s'][way]:.2f} {_spread(found, f'images_per_s.{way}')}"
    whole = found["images_per_s_with_startup"].get(way)
    cpu = found["cpu_s_per_image"][way]
    total = cpu["infer"] if way == "ceiling" else cpu["all"]
    rss, written = found["peak_rss_bytes"][way]["all"], found["bytes_written"].get(way)
    return (
        f"{way:<9} {rate:>22} {'' if whole is None else f'{whole:.2f}':>10} {total:>11.4f} {rss / 2**20:>5.0f} MiB "
        + ("" if written is None else f"{written / 2**20:>5.1f} MiB")
    )


def _ratio_values(found: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in found.items() if "ratio_" in name and value is not None]


def _spread(found: Mapping[str, Any], name: str) -> str:
    least, most = found["spread"][name]
    return f"({least:.2f}..{most:.2f})"


def _stages(way: str, parts: Mapping[str, float]) -> str:
    return f"{way}, CPU ms/image: " + ", ".join(f"{name} {value * 1000:.2f}" for name, value in parts.items())


def _contents(table: Mapping[str, float], images: int) -> str:
    if not table.get("instances"):
        return "no instances"
    return (
        f"{table['instances'] / images:.1f} instances an image of {table['classes']} classes, masks of "
        f"{table['median_share']:.2%} of it in the median ({table['mean_share']:.2%} in the mean), "
        f"RLE of {table['median_rle_chars']:.0f} characters"
    )
