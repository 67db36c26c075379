"""The experiments of Vrabel et al. (ICLR 2025) and Gu & Borovykh (2023), one file each, on anyone's classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from advconn.studies.common import Study, Subject


def studies() -> Mapping[str, Callable[..., Study]]:
    """Every study by its name."""
    from advconn.studies import (
        architectures,
        barriers,
        linear_or_not,
        percolation,
        training,
        untrained,
    )
    from advconn.studies import bypass as bypasses

    return {
        "linear-or-not": linear_or_not.run,
        "barriers": barriers.run,
        "bypass": bypasses.run,
        "untrained": untrained.run,
        "training": training.run,
        "percolation": percolation.run,
        "architectures": architectures.run,
    }


__all__ = ["Study", "Subject", "studies"]
