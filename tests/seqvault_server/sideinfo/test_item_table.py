"""The in-memory table's steps: what may make one long is spread over several."""

import numpy as np

from seqcore.schema import row_dtype
from seqvault_server.sideinfo.batch import ItemBatch
from seqvault_server.sideinfo.item_table import MAX_STEP_MOVES, ItemTable
from tests.seqvault_server.sideinfo.harness import SCHEMA


def test_sub_tables_that_grow_together_do_so_in_different_steps() -> None:
    table = ItemTable(SCHEMA, max_items=1 << 20)
    _, capacity, _ = table._row_of.kernel_parts
    random, moves = np.random.default_rng(1), []
    for _ in range(60):
        item_I = random.integers(0, 2**64 - 1, 5_000, np.uint64)
        steps = table.put(ItemBatch(item_I=item_I, rows=np.zeros(len(item_I), row_dtype(SCHEMA.side_info_columns))))
        while True:
            before = capacity.copy()
            if next(steps, 0) == 0:
                break
            moves.append(int(before[capacity != before].sum()))
        assert table.gather(item_I, ())[0].all()
    assert len(table) == 300_000
    assert max(moves) > MAX_STEP_MOVES // 2, "the test never met a crowd of growing sub-tables"
    assert max(moves) <= MAX_STEP_MOVES + capacity.max()
