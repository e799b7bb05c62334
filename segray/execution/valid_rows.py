"""The rows of a model's result that a table can hold.

Knows what makes a row invalid. Knows nothing of files and tables.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from segray import rle
from segray.instances import Instances


def drop_invalid_rows(instances: Instances, labels: Mapping[int, str]) -> tuple[Instances, Mapping[str, int]]:
    """Return the rows that the table can hold, and the number of dropped rows by reason.

    instances: instances of an image.
    labels: class names by id.
    """
    boxes_xyxy = instances.boxes_xyxy
    invalid_by_reason = {
        "empty_mask": np.asarray(rle.area(instances.rles)) <= 0 if len(instances) else np.zeros(0, np.bool_),
        "empty_box": (boxes_xyxy[:, 2] <= boxes_xyxy[:, 0]) | (boxes_xyxy[:, 3] <= boxes_xyxy[:, 1]),
        "unnamed_class": np.array([class_id not in labels for class_id in instances.class_ids.tolist()], np.bool_),
    }
    is_invalid = np.zeros(len(instances), np.bool_)
    dropped = {"unreadable": instances.unreadable} if instances.unreadable else {}
    for reason, rows in invalid_by_reason.items():
        if count := int((rows & ~is_invalid).sum()):
            dropped[reason] = count
        is_invalid |= rows
    return (instances.take(~is_invalid) if is_invalid.any() else instances), dropped
