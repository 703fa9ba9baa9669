"""${message}.

Revision: ${up_revision}, after ${down_revision | comma,n}.
"""

from typing import Final

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision: Final[str] = ${repr(up_revision)}
down_revision: Final[str | None] = ${repr(down_revision)}
branch_labels: Final[None] = ${repr(branch_labels)}
depends_on: Final[None] = ${repr(depends_on)}


def upgrade() -> None:
    """${message}."""
    ${upgrades if upgrades else "raise NotImplementedError"}


def downgrade() -> None:
    """Undo `upgrade`."""
    ${downgrades if downgrades else "raise NotImplementedError"}
