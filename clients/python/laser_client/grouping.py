"""Rows in any order to what Append takes: each user once, its rows together."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from laser_client.errors import ColumnError
from laser_client.wire import as_array, ids_of

Words = npt.NDArray[np.uint64]


def group_by_user(
    user_ids: npt.ArrayLike, columns: Mapping[str, npt.ArrayLike]
) -> tuple[Words, Words, dict[str, npt.NDArray[np.generic]]]:
    """Distinct users ascending, events of each, and the columns in that order; rows of one user keep theirs.

    Raises: InvalidRequest, ColumnError (COLUMN_LENGTH).
    """
    users = ids_of(user_ids, "user_ids")
    arrays = {name: as_array(values) for name, values in columns.items()}
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != len(users):
            raise ColumnError(name, "COLUMN_LENGTH", f"shape {array.shape} for {len(users)} rows of user_ids")
    if (users[1:] < users[:-1]).any():
        order = np.argsort(users, kind="stable")
        users = users[order]
        arrays = {name: array[order] for name, array in arrays.items()}
    distinct, counts = np.unique(users, return_counts=True)
    return distinct, counts.astype(np.uint64), arrays
