"""What an INSERT does where a row with its key is there already."""

from typing import Any


def replacing(insert: Any) -> Any:
    """An INSERT that takes the place of the row with its key."""
    table = insert.table
    return insert.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={c.name: insert.excluded[c.name] for c in table.c if not c.primary_key},
    )


def touching(insert: Any) -> Any:
    """An INSERT of threads that only touches those that are there already."""
    return insert.on_conflict_do_update(
        index_elements=["thread_id"], set_={"updated_at": insert.excluded.updated_at}
    )
