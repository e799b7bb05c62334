from __future__ import annotations

import pytest

from segray.models.coco_labels import COCO_IDS_80, COCO_NAMES, slug


def test_the_eighty_classes_and_their_gaps() -> None:
    assert len(COCO_NAMES) == len(set(COCO_NAMES.values())) == len(COCO_IDS_80) == 80
    assert set(range(1, 91)) - set(COCO_NAMES) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


def test_ids_ascend_so_that_index_means_class() -> None:
    assert list(COCO_IDS_80) == sorted(COCO_NAMES)
    assert [COCO_NAMES[COCO_IDS_80[index]] for index in (0, 11, 38, 79)] == [
        "person",
        "stop sign",
        "tennis racket",
        "toothbrush",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tennis racket", "tennis_racket"), ("TV", "tv"), ("  a--b  ", "a_b"), ("Größe 2", "gr_e_2"), ("été", "t")],
)
def test_slug(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_slugs_of_coco_do_not_collide() -> None:
    assert len({slug(name) for name in COCO_NAMES.values()}) == 80
