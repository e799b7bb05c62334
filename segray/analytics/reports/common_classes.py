"""Which class of one label set is which class of another: by a map, by name, or by a name that differs in spelling.

This module knows names. Ids play no part, since each model numbers its classes. Two classes of one label set are never
taken for one, unless a map says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from segray.analytics.evaluation.class_matching import ClassMap
from segray.errors import UserError
from segray.label_set.class_names import find_class, folded

_SHOWN = 3


@dataclass(frozen=True)
class CommonClasses:
    """The names under which the classes of label sets A and B are compared.

    names_a, names_b: own name -> common name, where both differ. shared: common names of classes that both label sets
    have; None where a label set does not list its classes. notes: what is told.
    """

    names_a: Mapping[str, str] = field(default_factory=dict)
    names_b: Mapping[str, str] = field(default_factory=dict)
    shared: frozenset[str] | None = None
    notes: Sequence[str] = ()


def match(a: Mapping[int, str], b: Mapping[int, str], class_map: ClassMap = ()) -> CommonClasses:
    """Match the classes of label sets A and B. A class that both have bears A's name.

    Args:
        a: Class name of A by category id; empty if A does not list its classes.
        b: The same of B.
        class_map: Names or ids of A with those of B, before all other rules. Several classes may be joined to one.

    Raises:
        UserError: The map names a class that the label set lacks.
    """
    if not a or not b:
        if class_map:
            raise UserError(
                "a label set does not list its classes", where="--class-map", found="no _segray/label_set.json",
                hint="leave out --class-map: classes are then compared by their exact names",
            )  # fmt: skip
        return CommonClasses()
    names_a, names_b = _mapped(a, b, class_map)
    notes = [f"by the class map, {_some(f'{old} is {new}' for old, new in class_map)}"] if class_map else []
    free_a = [name for name in a.values() if name not in names_a]
    free_b = [name for name in b.values() if name not in names_b]
    exact = set(free_a) & set(free_b)
    names_a |= {name: name for name in exact}
    names_b |= {name: name for name in exact}
    spelled, unclear = _by_spelling([n for n in free_a if n not in exact], [n for n in free_b if n not in exact])
    names_a |= {name: name for name in spelled.values()}
    names_b |= spelled
    if spelled:
        pairs = _some(f"{other!r} for {name!r}" for other, name in sorted(spelled.items()))
        notes.append(f"classes are compared by name; spelled otherwise in B: {pairs}")
    if unclear:
        notes.append(f"names of B that fit no class alone; say which with --class-map A=B: {_some(unclear)}")
    shared = frozenset(names_a.values()) & frozenset(names_b.values())
    return CommonClasses(_changed(names_a), _changed(names_b), shared, notes)


def _by_spelling(a: Sequence[str], b: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return B's name -> A's name where both differ in spelling only, and the names that fit several classes."""
    counts_a, counts_b = (Counter(folded(name) for name in names) for names in (a, b))
    by_folded = {folded(name): name for name in a}
    fitting = [name for name in b if folded(name) in by_folded]
    is_clear = {name: counts_a[folded(name)] == counts_b[folded(name)] == 1 for name in fitting}
    spelled = {name: by_folded[folded(name)] for name in fitting if is_clear[name]}
    return spelled, sorted(name for name in fitting if not is_clear[name])


def _changed(names: Mapping[str, str]) -> dict[str, str]:
    return {name: common for name, common in names.items() if name != common}


# ---- an explicit map ------------------------------------------------------------------------------


def _mapped(a: Mapping[int, str], b: Mapping[int, str], class_map: ClassMap) -> tuple[dict[str, str], dict[str, str]]:
    """Return own name -> common name of the classes that the map names, for A and for B."""
    groups: list[tuple[list[str], list[str]]] = []
    for old, new in class_map:
        name_a, name_b = _resolved(old, a, "A"), _resolved(new, b, "B")
        joined = [group for group in groups if name_a in group[0] or name_b in group[1]]
        groups = [group for group in groups if group not in joined]
        of_a = [name for group in joined for name in group[0]]
        of_b = [name for group in joined for name in group[1]]
        groups.append((list(dict.fromkeys([*of_a, name_a])), list(dict.fromkeys([*of_b, name_b]))))
    names_a, names_b = dict[str, str](), dict[str, str]()
    for of_a, of_b in groups:
        common = of_a[0] if len(of_a) == 1 else of_b[0] if len(of_b) == 1 else "+".join(of_a)
        names_a |= dict.fromkeys(of_a, common)
        names_b |= dict.fromkeys(of_b, common)
    return names_a, names_b


def _resolved(text: str, classes: Mapping[int, str], side: str) -> str:
    """Return the name of the class with this name or id; raise UserError unless there is exactly one."""
    number = find_class(text, classes)
    if number is None and re.fullmatch("[0-9]+", text) and int(text) in classes:
        number = int(text)
    if number is None:
        raise UserError(
            f"the class map names a class that label set {side} lacks, or has more than once", where="--class-map",
            found=text, hint=f"write --class-map A=B; {side} has {_some(classes.values())}",
        )  # fmt: skip
    return classes[number]


def _some(texts: Iterable[str]) -> str:
    listed = list(texts)
    return ", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")
