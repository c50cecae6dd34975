"""What the paper reports for the splits that it evaluates on (Tables 1 and 2), to stand beside what was found."""

from __future__ import annotations

Recalls = tuple[float, float, float]  # R@1, R@5, R@10

# Dataset, images, folds -> kind -> text finds image, image finds text.
_ROWS: dict[tuple[str, int, int], dict[str, tuple[Recalls, Recalls]]] = {
    ("flickr30k", 1000, 1): {
        "zero-shot": ((54.3, 79.6, 87.5), (70.7, 90.2, 94.0)),
        "fine-tuned": ((73.1, 92.6, 96.0), (87.0, 97.6, 99.2)),
    },
    ("coco", 5000, 5): {
        "zero-shot": ((53.6, 83.2, 91.7), (67.0, 90.3, 96.1)),
        "fine-tuned": ((73.6, 94.3, 97.2), (85.4, 98.7, 99.8)),
    },
    ("coco", 5000, 1): {
        "zero-shot": ((32.3, 59.0, 70.2), (44.0, 71.2, 80.4)),
        "fine-tuned": ((50.5, 78.7, 87.1), (66.4, 89.8, 94.4)),
    },
}


def paper_row(
    dataset: str, split: str | None, images: int, folds: int, kind: str
) -> dict[str, dict[str, float]] | None:
    """The paper's recalls for a test split of Karpathy's, as `metrics.recalls` names them; None for any other."""
    if split != "test" or (dataset, images, folds) not in _ROWS:
        return None
    rows = zip(("ir", "tr"), _ROWS[dataset, images, folds][kind], strict=True)
    return {way: dict(zip(("r1", "r5", "r10"), row, strict=True)) for way, row in rows}
