from __future__ import annotations

from segray.models.coco_labels import COCO_IDS_80, COCO_NAMES


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
