"""Packages that come with an extra only."""

from __future__ import annotations

import importlib.util

from orbit_kd.errors import InputError


def require(*packages: str, extra: str) -> None:
    """Checks that optional packages are installed, without importing them.

    Args:
        *packages: import names.
        extra: of orbit-kd, that brings them.

    Raises:
        InputError: one is missing; the message has the command that installs it.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"{package} is not installed.", expected=f"the extra `{extra}`", fix=f'pip install "orbit-kd[{extra}]"'
            )
