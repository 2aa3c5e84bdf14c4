"""Keys under which results are found again."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest(*values: Any) -> str:
    """sha256 of JSON values, as hex: the key under which a result is found again."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
