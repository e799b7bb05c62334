"""Which category of a truth is which class of a label set: by id, by name, or by a map.

This module knows ids and names. Files and label sets belong to other modules. No two classes are ever taken for one,
unless a map says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from segray.analytics.evaluation import truth_rows
from segray.errors import SourceError, UserError
from segray.label_set.class_names import folded

CLASSES_BY = ("id", "name")
_SHOWN = 3
_HINT = (
    "give the truth of this model's classes, or map the names with --class-map TRUTH=LABEL, "
    "or compare by id alone with --classes-by id"
)
ClassMap = Sequence[tuple[str, str]]  # names or ids: of the truth, and of the label set


@dataclass(frozen=True)
class ClassMatch:
    """The classes that are compared.

    ids: class id by the truth's category id; None where both are equal. names: by class id, of the classes that count.
    detected: class id by the label set's, where a map joins classes of the label set. notes: what is told.
    """

    ids: Mapping[int, int] | None
    names: Mapping[int, str]
    detected: Mapping[int, int] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def of(self, frequency: Mapping[int, str]) -> Mapping[int, str]:
        """Return a mapping by class id from one by category id."""
        if self.ids is None:
            return frequency
        return {self.ids[category]: value for category, value in frequency.items() if category in self.ids}


def match(
    truth: Mapping[int, str | None],
    used: Collection[int],
    labels: Mapping[int, str],
    *,
    classes_by: str | None = None,
    class_map: ClassMap = (),
    allow_other_classes: bool = False,
    where: str = "",
) -> ClassMatch:
    """Match the categories of a truth with the classes of a label set.

    Without a choice, ids count where all names agree; else names, if each category with annotations has a class of its
    name alone.

    Args:
        truth: Name by category id; None for a category without a name.
        used: Ids of the categories that have annotations.
        labels: Name by class id of the label set; empty if the label set does not list its classes.
        classes_by: "id" for ids whatever the names are, "name", or None to choose.
        class_map: Names or ids of the truth with those of the label set, before all other rules.
        allow_other_classes: Accept categories that the labels lack. They count, without detections.
        where: Truth and label set, for errors.

    Raises:
        UserError: The labels lack a category, two categories fit one class, or the map names an unknown class.
    """
    if classes_by is not None and classes_by not in CLASSES_BY:
        raise UserError("no such way to compare classes", found=classes_by, hint=f"choose from {', '.join(CLASSES_BY)}")
    if not labels and (classes_by == "name" or class_map):
        raise UserError(
            "the label set does not list its classes", where=where, found="classes to compare by name",
            hint="compare by id: leave out --classes-by and --class-map",
        )  # fmt: skip
    mapped = _mapped(class_map, truth, used, labels, where)
    unmapped = {category: name for category, name in truth.items() if category not in mapped.ids}
    ignores_names = classes_by == "id" or (classes_by is None and allow_other_classes)
    nameless = [category for category, name in sorted(unmapped.items()) if name is None and category in used]
    if nameless and labels and not ignores_names:
        raise SourceError(
            "a category of the truth has no name", where=where, found=f"category {nameless[0]}",
            hint="name the category, or compare by id alone with --classes-by id",
        )  # fmt: skip
    if ignores_names or not labels or (classes_by is None and _ids_agree(unmapped, labels)):
        return _by_id(unmapped, labels, mapped, tell=classes_by == "id", where=where)
    return _by_name(
        unmapped, used, labels, mapped, is_asked=classes_by == "name", allow=allow_other_classes, where=where
    )


# ---- by id ----------------------------------------------------------------------------------------


def _ids_agree(truth: Mapping[int, str | None], labels: Mapping[int, str]) -> bool:
    return all(
        name is not None and category in labels and folded(labels[category]) == folded(name)
        for category, name in truth.items()
    )


def _by_id(
    unmapped: Mapping[int, str | None], labels: Mapping[int, str], mapped: _Mapped, *, tell: bool, where: str
) -> ClassMatch:
    if both := sorted(set(unmapped) & (set(mapped.names) | set(mapped.detected))):
        raise UserError(
            "two categories of the truth would be one class", where=where,
            found=f"category {both[0]}, and one that the class map gives to class {both[0]}",
            hint=f"map category {both[0]} too, or compare by name with --classes-by name",
        )  # fmt: skip
    notes = list(mapped.notes)
    differing = _differences(unmapped, labels) if tell and labels else []
    if differing:
        notes.append(
            f"classes are compared by id, {len(differing)} of {len(unmapped)} with other names: {_some(differing)}"
        )
    names = {
        category: labels.get(category, f"category {category}") if name is None else name
        for category, name in unmapped.items()
    }
    ids = {**mapped.ids, **{category: category for category in unmapped}} if mapped.ids else None
    return ClassMatch(ids, _distinct({**names, **mapped.names}), mapped.detected, notes)


def _differences(truth: Mapping[int, str | None], labels: Mapping[int, str]) -> list[str]:
    return [
        f"{_numbered(category, f'is {name!r}')} in the truth, {labels.get(category, 'nothing')!r} in the labels"
        for category, name in sorted(truth.items())
        if name is None or category not in labels or folded(labels[category]) != folded(name)
    ]


# ---- by name --------------------------------------------------------------------------------------


def _by_name(
    unmapped: Mapping[int, str | None],
    used: Collection[int],
    labels: Mapping[int, str],
    mapped: _Mapped,
    *,
    is_asked: bool,
    allow: bool,
    where: str,
) -> ClassMatch:
    free = {number: name for number, name in labels.items() if number not in mapped.taken}
    candidates = {category: _named(name or "", free) for category, name in unmapped.items()}
    ids, lacking, left_out = dict(mapped.ids), list[int](), list[int]()
    # Categories with annotations choose first: tools list a root category of the same name without annotations.
    for category in sorted(unmapped, key=lambda category: (category not in used, category)):
        fitting = candidates[category]
        is_taken = len(fitting) == 1 and fitting[0] in ids.values()
        if len(fitting) == 1 and not is_taken:
            ids[category] = fitting[0]
        elif category not in used:
            left_out.append(category)
        elif fitting and is_asked:
            others = _fitting_names(category, fitting, ids, unmapped, labels)
            raise UserError(
                "a name of the truth fits more than one class", where=where,
                found=f"category {_numbered(category, repr(unmapped[category]))}, with {others}",
                hint="say which is which with --class-map TRUTH=LABEL; TRUTH and LABEL may be ids",
            )  # fmt: skip
        else:
            lacking.append(category)
    if lacking and not (is_asked and allow):
        raise UserError(
            "the labels lack categories of the truth, or give them other names", where=where,
            found=_lacking_text(unmapped, labels, lacking, is_asked=is_asked), hint=_HINT,
        )  # fmt: skip
    first_free = max([*labels, 0]) + 1
    fresh = {category: first_free + k for k, category in enumerate(lacking)}
    names = {number: labels[number] for category, number in ids.items() if category in unmapped}
    names |= {number: str(unmapped[category]) for category, number in fresh.items()}
    notes = [*mapped.notes, *_notes_by_name(unmapped, ids, labels, left_out, lacking)]
    return ClassMatch({**ids, **fresh}, _distinct({**names, **mapped.names}), mapped.detected, notes)


def _named(name: str, classes: Mapping[int, str | None]) -> list[int]:
    """Return the classes of exactly this name, or else those whose name differs only in case, `_`, `-` and spaces."""
    exact = [number for number, other in classes.items() if other == name]
    return exact or [n for n, other in classes.items() if other is not None and folded(other) == folded(name)]


def _fitting_names(
    category: int,
    fitting: Sequence[int],
    ids: Mapping[int, int],
    unmapped: Mapping[int, str | None],
    labels: Mapping[int, str],
) -> str:
    if len(fitting) > 1:
        return " and ".join(f"class {number} {labels[number]!r}" for number in fitting)
    other = next(key for key, number in ids.items() if number == fitting[0] and key != category)
    return f"category {_numbered(other, repr(unmapped.get(other)))} of class {fitting[0]} {labels[fitting[0]]!r}"


def _lacking_text(
    unmapped: Mapping[int, str | None], labels: Mapping[int, str], lacking: Sequence[int], *, is_asked: bool
) -> str:
    if is_asked:
        names = [_numbered(category, repr(unmapped[category])) for category in lacking]
        return f"{len(lacking)} of {len(unmapped)}: {_some(names, ', ')}"
    differences = _differences(unmapped, labels)
    return f"{len(differences)} of {len(unmapped)}: {_some(differences)}"


def _notes_by_name(
    unmapped: Mapping[int, str | None],
    ids: Mapping[int, int],
    labels: Mapping[int, str],
    left_out: Sequence[int],
    lacking: Sequence[int],
) -> list[str]:
    matched = {category: ids[category] for category in unmapped if category in ids}
    other = [
        f"{_numbered(category, repr(unmapped[category]))} is {number} {labels[number]!r}"
        for category, number in sorted(matched.items())
        if category != number or unmapped[category] != labels[number]
    ]
    notes = []
    if other:
        notes.append(
            f"classes are compared by name, {len(other)} of {len(matched)} with another id or spelling in the truth: "
            f"{_some(other)}"
        )
    if left_out:
        names = [_numbered(category, repr(unmapped[category])) for category in sorted(left_out)]
        notes.append(f"categories without annotations that the labels lack are left out: {_some(names, ', ')}")
    if lacking:
        names = [_numbered(category, repr(unmapped[category])) for category in sorted(lacking)]
        notes.append(f"the labels lack categories, which count without detections: {_some(names, ', ')}")
    return notes


# ---- an explicit map ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mapped:
    """What a class map says. taken: ids of classes that the map names. The other fields are those of ClassMatch."""

    ids: Mapping[int, int]
    names: Mapping[int, str]
    detected: Mapping[int, int]
    taken: frozenset[int]
    notes: Sequence[str]


def _mapped(
    class_map: ClassMap, truth: Mapping[int, str | None], used: Collection[int], labels: Mapping[int, str], where: str
) -> _Mapped:
    pairs = [
        (_resolved(old, truth, used, "truth", where), _resolved(new, labels, (), "label set", where))
        for old, new in class_map
    ]
    groups = _groups(pairs)
    ids, names, detected = dict[int, int](), dict[int, str](), dict[int, int]()
    for categories, numbers in groups:
        class_id = min(numbers)
        ids |= dict.fromkeys(categories, class_id)
        detected |= {number: class_id for number in numbers if number != class_id}
        names[class_id] = labels[class_id] if len(numbers) == 1 else "+".join(str(truth[c]) for c in sorted(categories))
    words = [f"{old} is {new}" for old, new in class_map]
    notes = [f"by the class map, {_some(words, ', ')}"] if words else []
    return _Mapped(ids, names, detected, frozenset(number for _, numbers in groups for number in numbers), notes)


def _resolved(
    text: str, classes: Mapping[int, str | None] | Mapping[int, str], used: Collection[int], side: str, where: str
) -> int:
    """Return the class of this name or id. Raise UserError unless there is exactly one."""
    fitting = _named(text, dict(classes))
    if len(fitting) > 1 and len(having := [number for number in fitting if number in used]) == 1:
        fitting = having
    if not fitting and re.fullmatch("[0-9]+", text) and int(text) in classes:
        fitting = [int(text)]
    if len(fitting) != 1:
        class_names = [str(name) for name in classes.values()]
        raise UserError(
            f"the class map names a class that the {side} {'has more than once' if fitting else 'lacks'}", where=where,
            found=text, hint=f"write --class-map TRUTH=LABEL; the {side} has {_some(class_names, ', ')}",
        )  # fmt: skip
    return fitting[0]


def _groups(pairs: Iterable[tuple[int, int]]) -> list[tuple[set[int], set[int]]]:
    """Return the categories and classes that pairs join to one class each."""
    groups: list[tuple[set[int], set[int]]] = []
    for category, number in pairs:
        joined = [group for group in groups if category in group[0] or number in group[1]]
        groups = [group for group in groups if group not in joined]
        groups.append((
            {category}.union(*(group[0] for group in joined)), {number}.union(*(group[1] for group in joined))
        ))  # fmt: skip
    return groups


def _distinct(names: Mapping[int, str]) -> dict[int, str]:
    """Return the names, with the id behind each name that two classes share."""
    counts = Counter(names.values())
    return {number: name if counts[name] == 1 else f"{name} ({number})" for number, name in names.items()}


def _numbered(category: int, text: str) -> str:
    """Return a text with the category's id before it, unless the truth's id is a word."""
    return text if truth_rows.is_word(category) else f"{category} {text}"


def _some(texts: Sequence[str], separator: str = "; ") -> str:
    return separator.join(texts[:_SHOWN]) + (" ..." if len(texts) > _SHOWN else "")
