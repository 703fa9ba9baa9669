"""All workloads, in the order of the table."""

from typing import Final

from long import LONG
from rows import Group, Workload
from small import SMALL
from whole import BYTES, WHOLE
from wire import WIRE

GROUPS: Final[tuple[Group, ...]] = (SMALL, LONG, WHOLE, BYTES, WIRE)
WORKLOADS: Final[dict[str, Workload]] = {
    one.name: one for group in GROUPS for one in group.workloads
}
