"""`train.exact` promises the same bits on equal processors and versions: what differs in them is said, at the start and after a move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dtrain.common.files import write_whole


def warnings(found: Sequence[str], known: Path) -> list[str]:
    """Return warnings about the fingerprints of all ranks; the file `known` keeps that of the run's first attempt."""
    usual, _ = Counter(found).most_common(1)[0]
    texts = []
    others = [rank for rank, one in enumerate(found) if one != usual]
    if others:
        texts.append(
            f"train.exact: the processors or versions of ranks {', '.join(map(str, others))} compute other bits than those of the other ranks: the "
            "weights depend on which rank does which shard"
        )
    with suppress(OSError):
        before = known.read_text().strip() if known.exists() else ""
        if before and before != usual:
            texts.append(
                "train.exact: the processors or versions here compute other bits than those that this run began on: its weights "
                "are not those of an undisturbed run"
            )
        elif not before:
            write_whole(known, f"{usual}\n")
    return texts
