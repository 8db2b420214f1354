"""What people use today."""

from __future__ import annotations

RIVALS = {}
