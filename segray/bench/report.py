"""The record of a benchmark, with stable keys, and the record as a table.

Knows medians and ratios. Knows nothing of how the values were measured. Each ratio is computed within a round, because
the machine may change between rounds. The record holds the median of the ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist, mean, median, stdev
from typing import Any

from segray.bench.runner import TITLES, VARIANT_BY_LETTER, VariantRun, runs_of
from segray.bench.workload import Workload
from segray.config import AUTO

# Share of the CPUs. If other processes use more, images/s measure these processes and not the variants.
_MOST_OTHERS_SHARE = 0.05
_WRITING_VARIANTS = ("segray", "ray_data", "script", "queue", "remote")
_SEGRAY_VARIANTS = ("segray", "remote")
# Quantiles of Student's t at 0.975, for 1 to 10 degrees of freedom.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def record(workload: Workload, runs: Sequence[VariantRun]) -> dict[str, Any]:
    """Return the benchmark's record for programs. The keys stay the same from release to release.

    The upper bound has the name "ceiling", the lower bound the name "floor".

    ratio_to_ceiling, ratio_to_ray_data, ratio_to_script, ratio_to_queue: segray's images/s over those of the other
    variant, both without startup.
    ratio_remote_to_local: segray's images/s from object storage over those from files.
    ratio_with_startup: segray's images/s from the start of the command to its end, over the upper bound's.
    ratio_while_labelling: segray's images/s from the first assigned unit to the last staged unit, over the upper
    bound's. The difference to ratio_to_ceiling is the last merge and commit.
    cpu_ratio_to_ceiling: the upper bound's CPU seconds per image over those of all segray's processes. The value is
    what ratio_to_ceiling would be if no CPU ever waited. A busy machine changes this ratio little, and the others much.
    cpu_ratio_to_floor: the lower bound's CPU seconds per image over those of all segray's processes.
    others_share: share of the CPUs, 0..1, that other processes used during the timed part, by variant.
    spread: [smallest, largest] of each ratio and rate over the rounds.
    confidence: [low, high] of the mean of each ratio and rate over the rounds, at 95 %, by Student's t; with two rounds
    and more.
    images_per_s, images_per_s_with_startup: by variant.
    cpu_s_per_image: by variant and stage; by role of process where a variant does not measure stages: driver, worker,
    ray (Ray's own processes). `all` is the sum. segray's stages are those of its labelling worker; merge is the work
    of other workers.
    peak_rss_bytes: by variant, of the driver, of the largest worker, and of all processes.
    bytes_written: by variant.
    startup_s: from the start of the command to the start of the timed part.
    first_unit_s, first_commit_s: from the start of the command to segray's first staged unit and first commit.
    found: statistics of the tables, by variant.
    same_instances: whether the tables hold equally many instances; None for one table.
    """
    by_variant = {name: runs_of(runs, name) for name in VARIANT_BY_LETTER.values()}
    by_variant = {name: of_variant for name, of_variant in by_variant.items() if of_variant}
    writing = {name: of_variant for name, of_variant in by_variant.items() if name in _WRITING_VARIANTS}
    rates = {name: [run.images_per_s for run in of_variant] for name, of_variant in by_variant.items()}
    rates_with_startup = {
        name: [run.images_per_s_with_startup for run in of_variant] for name, of_variant in writing.items()
    }
    labelling = [
        run.images / (run.marks["last_unit_s"] - run.began_s)
        for run in runs_of(runs, "segray")
        if "last_unit_s" in run.marks
    ]
    ratios = {
        "ratio_to_ceiling": _ratios(rates.get("segray"), rates.get("ceiling")),
        "ratio_to_ray_data": _ratios(rates.get("segray"), rates.get("ray_data")),
        "ratio_to_script": _ratios(rates.get("segray"), rates.get("script")),
        "ratio_to_queue": _ratios(rates.get("segray"), rates.get("queue")),
        "ratio_remote_to_local": _ratios(rates.get("remote"), rates.get("segray")),
        "ratio_with_startup": _ratios(rates_with_startup.get("segray"), rates.get("ceiling")),
        "ratio_while_labelling": _ratios(labelling, rates.get("ceiling")),
    }
    cpu = {
        name: [sum(_cpu_by_part(run).values()) / run.images for run in of_variant]
        for name, of_variant in by_variant.items()
    }
    ratios["cpu_ratio_to_ceiling"] = _ratios(cpu.get("ceiling"), cpu.get("segray"))
    ratios["cpu_ratio_to_floor"] = _ratios(cpu.get("floor"), cpu.get("segray"))
    tables = {name: dict(of_variant[0].mask_stats) for name, of_variant in writing.items()}
    instance_counts = {table.get("instances") for table in tables.values()}
    facts = {name: value for run in runs for name, value in run.facts.items()}
    spread = {**ratios, **{f"images_per_s.{name}": values for name, values in rates.items()}}
    return {
        **{name: _rounded(values) for name, values in ratios.items()},
        "spread": {name: [round(min(values), 4), round(max(values), 4)] for name, values in spread.items() if values},
        "confidence": {name: _confidence(values) for name, values in spread.items() if len(values) > 1},
        "images_per_s": {name: _rounded(values) for name, values in rates.items()},
        "images_per_s_with_startup": {name: _rounded(values) for name, values in rates_with_startup.items()},
        "cpu_s_per_image": {name: _cpu_s_per_image(of_variant) for name, of_variant in by_variant.items()},
        "others_share": {
            name: _median(of_variant, lambda run: run.others_share) for name, of_variant in by_variant.items()
        },
        "peak_rss_bytes": {
            name: _medians(of_variant, lambda run: run.peak_rss_bytes) for name, of_variant in by_variant.items()
        },
        "bytes_written": {
            name: _median(of_variant, lambda run: run.bytes_written) for name, of_variant in writing.items()
        },
        "startup_s": {
            name: _median(of_variant, lambda run: run.began_s - run.started_s)
            for name, of_variant in by_variant.items()
        },
        "first_unit_s": _since_start(runs_of(runs, "segray"), "first_unit_s"),
        "first_commit_s": _since_start(runs_of(runs, "segray"), "first_commit_s"),
        "found": tables,
        "same_instances": len(instance_counts) == 1 if len(tables) > 1 else None,
        "images": len(workload.images),
        "rounds": max(map(len, by_variant.values()), default=0),
        "threads": workload.threads,
        "model": dict(workload.model),
        "settings": list(workload.settings),
        "facts": facts,
    }


def _ratios(numerators: Sequence[float] | None, denominators: Sequence[float] | None) -> list[float]:
    """Return the ratio of each round; no ratio if a variant did not run."""
    return [a / b for a, b in zip(numerators or (), denominators or (), strict=False)]


def _confidence(values: Sequence[float]) -> list[float]:
    """Return the interval that holds the mean of such values at 95 %, by Student's t. There are two values at least."""
    freedom = len(values) - 1
    quantile = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _student_of_many(freedom)
    centre, half = mean(values), quantile * stdev(values) / len(values) ** 0.5
    return [round(centre - half, 4), round(centre + half, 4)]


def _student_of_many(freedom: int) -> float:
    """Return the quantile of Student's t at 0.975, by Abramowitz and Stegun 26.7.5."""
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _rounded(values: Sequence[float]) -> float | None:
    return round(median(values), 4) if values else None


def _median(runs: Sequence[VariantRun], value_of: Callable[[VariantRun], float]) -> float | None:
    return _rounded([value_of(run) for run in runs])


def _since_start(runs: Sequence[VariantRun], mark: str) -> float | None:
    return _rounded([run.marks[mark] - run.started_s for run in runs if mark in run.marks])


def _medians(runs: Sequence[VariantRun], value_of: Callable[[VariantRun], Mapping[str, float]]) -> dict[str, float]:
    names = {name: None for run in runs for name in value_of(run)}
    return {name: median(value_of(run).get(name, 0) for run in runs) for name in names}


def _cpu_by_part(run: VariantRun) -> dict[str, float]:
    """Return CPU seconds by stage and by role of process.

    The stages replace the role of the process that ran them. Without stages the seconds are by role alone.
    """
    staged_role = "worker" if run.variant in _SEGRAY_VARIANTS else "driver"
    roles = {role: seconds for role, seconds in run.roles.items() if role != staged_role or not run.stages}
    if run.variant in _SEGRAY_VARIANTS and run.stages:
        roles["merge"] = run.roles.get("worker", 0.0) - sum(run.stages.values())
    return {**run.stages, **{role: seconds for role, seconds in roles.items() if seconds > 0}}


def _cpu_s_per_image(runs: Sequence[VariantRun]) -> dict[str, float]:
    by_part = _medians(runs, _cpu_by_part)
    total = median(sum(_cpu_by_part(run).values()) for run in runs)
    return {name: round(value / runs[0].images, 5) for name, value in {**by_part, "all": total}.items()}


# ---- for a person ---------------------------------------------------------------------------------


def describe(record: Mapping[str, Any]) -> str:
    """Return the record as a table."""
    facts, model = record["facts"], record["model"]
    rounds = "1 round" if record["rounds"] == 1 else f"{record['rounds']} rounds"
    name = Path(model["path"]).name if model["name"] == AUTO else model["name"]
    head = (
        f"{record['images']} images, {rounds}, {name}, {facts.get('precision', model.get('precision', 'auto'))}, "
        f"{record['threads']} threads: medians, smallest and largest value in brackets"
    )
    lines = [
        head,
        "",
        f"{'':<11} {'images/s':>22} {'with start':>10} {'CPU s/image':>11} {'peak RSS':>9} {'written':>9}",
    ]
    lines += [_line(record, variant) for variant in record["images_per_s"]]
    lines.append("")
    lines += [
        f"{_ratio_title(name):<24} {value:.3f} {_spread(record, name)}{_interval(record, name)}"
        for name, value in _ratio_values(record)
    ]
    lines.append("")
    lines += [_stages(variant, parts) for variant, parts in record["cpu_s_per_image"].items()]
    lines += [f"{_title(name)}: {_contents(table, record['images'])}" for name, table in record["found"].items()]
    if (most := max(record["others_share"].values())) > _MOST_OTHERS_SHARE:
        lines.append(f"warning: other processes used up to {most:.0%} of the CPUs; compare CPU seconds, not images/s")
    if record["same_instances"] is False:
        lines.append("warning: the variants did not find the same instances")
    return "\n".join(lines)


def _title(variant: str) -> str:
    return TITLES.get(variant, variant)


def _ratio_title(name: str) -> str:
    for variant, title in TITLES.items():
        name = name.replace(variant, title)
    return name.replace("_", " ")


def _line(record: Mapping[str, Any], variant: str) -> str:
    rate = f"{record['images_per_s'][variant]:.2f} {_spread(record, f'images_per_s.{variant}')}"
    if variant == "floor":  # The lower bound measures CPU seconds only.
        rate = ""
    with_startup = record["images_per_s_with_startup"].get(variant)
    rate_with_startup = "" if with_startup is None else f"{with_startup:.2f}"
    cpu = record["cpu_s_per_image"][variant]
    total = cpu["infer"] if variant == "ceiling" else cpu["all"]
    rss, written = record["peak_rss_bytes"][variant]["all"], record["bytes_written"].get(variant)
    return f"{_title(variant):<11} {rate:>22} {rate_with_startup:>10} {total:>11.4f} {rss / 2**20:>5.0f} MiB " + (
        "" if written is None else f"{written / 2**20:>5.1f} MiB"
    )


def _ratio_values(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in record.items() if "ratio_" in name and value is not None]


def _spread(record: Mapping[str, Any], name: str) -> str:
    least, most = record["spread"][name]
    return f"({least:.2f}..{most:.2f})"


def _interval(record: Mapping[str, Any], name: str) -> str:
    if name not in record["confidence"]:
        return ""
    low, high = record["confidence"][name]
    return f", mean at 95 %: {low:.3f}..{high:.3f}"


def _stages(variant: str, parts: Mapping[str, float]) -> str:
    return f"{_title(variant)}, CPU ms/image: " + ", ".join(
        f"{name} {value * 1000:.2f}" for name, value in parts.items()
    )


def _contents(table: Mapping[str, float], images: int) -> str:
    if not table.get("instances"):
        return "no instances"
    return (
        f"{table['instances'] / images:.1f} instances per image, {table['classes']} classes, "
        f"masks cover {table['median_share']:.2%} of the image (median; mean {table['mean_share']:.2%}), "
        f"RLE of {table['median_rle_chars']:.0f} characters"
    )
