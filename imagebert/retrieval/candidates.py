"""Search without scoring everything: vectors find candidates, ImageBERT scores those. The gate of faiss.

Vectors are the dual head's, or any that a person brings: an .npz file with

    images [I, D], captions [N, D]      float; the larger the product of two, the likelier they match
    image_keys [I]                      text, the keys of the region store
    caption_texts [N]                   text; in the order of the pair store's split

The search is over all vectors and exact, unless an index was built over them, which looks at some of them only
(python -m benchmarks.search says how much faster that is, and what it misses). Only what the vectors leave out is lost,
and `imagebert evaluate --candidates` says how much that is.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from imagebert.config import UsageError
from imagebert.retrieval.metrics import Ranks, rank, recalls
from imagebert.retrieval.scoring import PairScorer
from imagebert.retrieval.vectors import Embeddings

Numbers = NDArray[np.int64]
Vectors = NDArray[np.float32]

_TOP = 10  # of the exact order, whose recall is told


def nearest(queries: Vectors, keys: Vectors, count: int) -> Numbers:
    """The numbers of the `count` keys [N, D] with the largest product with each of queries [Q, D]: [Q, count]."""
    import faiss

    queries, keys = (np.ascontiguousarray(vectors, np.float32) for vectors in (queries, keys))
    _, found = faiss.knn(queries, keys, min(count, len(keys)), metric=faiss.METRIC_INNER_PRODUCT)
    return np.asarray(found, np.int64)


Kind = Literal["hnsw", "ivf"]

# For a million vectors of 256; python -m benchmarks.search says what they find. Numbers are kept in 8 bits: a quarter
# of the memory to go through, and candidates are scored by ImageBERT anyhow.
LINKS, BUILD_CANDIDATES, SEARCH_CANDIDATES = 32, 200, 400  # of HNSW: of a vector, while it is added, of a query
LISTS, PROBES = 4096, 64  # of IVF: all, and those that a query looks into
_TRAINED_ON = 64  # vectors for each list


class Index:
    """An index over unit vectors that looks at some of them only: faiss' HNSW or IVF, with numbers in 8 bits.

    Args:
        index: faiss' own
    """

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, kind: Kind, vectors: Vectors) -> Index:
        """Over vectors [N, D], whose numbers it finds; uses all threads."""
        import faiss

        size, product = vectors.shape[1], faiss.METRIC_INNER_PRODUCT
        bits: Any = faiss.ScalarQuantizer.QT_8bit
        vectors = np.ascontiguousarray(vectors, np.float32)
        index: Any
        if kind == "hnsw":
            index = faiss.IndexHNSWSQ(size, bits, LINKS, product)
            index.hnsw.efConstruction, index.hnsw.efSearch = BUILD_CANDIDATES, SEARCH_CANDIDATES
        else:
            lists = max(1, min(LISTS, len(vectors) // _TRAINED_ON))
            index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(size), size, lists, bits, product)
            index.nprobe = min(PROBES, lists)
            index.cp.spherical = True
            index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = _TRAINED_ON, 1
        index.train(vectors)
        index.add(vectors)
        return cls(index)

    @classmethod
    def read(cls, path: Path) -> Index:
        """What `write` wrote, and is known to be unchanged: a damaged file may be anything to faiss.

        Raises:
            UsageError: faiss cannot read it.
        """
        import faiss

        try:
            return cls(faiss.read_index(str(path)))
        except (RuntimeError, MemoryError) as error:
            raise UsageError(f"faiss cannot read {path}: {str(error).splitlines()[0][:200]}") from None

    def write(self, path: Path) -> None:
        """Raises OSError where it cannot be written."""
        import faiss

        try:
            faiss.write_index(self._index, str(path))
        except RuntimeError as error:
            raise OSError(f"faiss cannot write {path}: {str(error).splitlines()[0][:200]}") from None

    def __call__(self, query: Vectors, count: int) -> Numbers:
        """Nearly the `count` nearest of one query [D], the nearest first; fewer where it finds no more."""
        _, found = self._index.search(np.ascontiguousarray(query[None], np.float32), min(count, self._index.ntotal))
        return np.asarray(found[0][found[0] >= 0], np.int64)

    @property
    def described(self) -> dict[str, Any]:
        """Kind, parameters, vectors, and the faiss that it was made with."""
        import faiss

        of, index = {"vectors": self._index.ntotal, "dimensions": self._index.d}, self._index
        if isinstance(index, faiss.IndexHNSW):
            hnsw = index.hnsw
            parameters = {"links": LINKS, "build_candidates": hnsw.efConstruction, "search_candidates": hnsw.efSearch}
            return {"kind": "hnsw", "parameters": parameters, **of, "faiss": faiss.__version__}
        parameters = {"lists": index.nlist, "probes": index.nprobe}
        return {"kind": "ivf", "parameters": parameters, **of, "faiss": faiss.__version__}

    def search_as(self, value: int) -> None:
        """Looks at fewer or more vectors for a query: HNSW's candidates, IVF's lists."""
        if hasattr(self._index, "hnsw"):
            self._index.hnsw.efSearch = value
        else:
            self._index.nprobe = value


def read_embeddings(path: Path, keys: list[str], texts: list[str]) -> Embeddings:
    """Vectors that a person brought, for these images and captions, in their order.

    Raises:
        UsageError: the file cannot be read, lacks an image or a caption, or names an image twice.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images, captions = (np.asarray(file[name], np.float32) for name in ("images", "captions"))
            image_keys, caption_texts = file["image_keys"].tolist(), file["caption_texts"].tolist()
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, BadZipFile) as error:
        raise UsageError(
            f"embeddings {path}: {error}; give an .npz with images, captions, image_keys and caption_texts"
        ) from None
    shapes = images.shape, captions.shape
    fits = images.ndim == captions.ndim == 2 and images.shape[1] == captions.shape[1]
    if not fits or len(image_keys) != len(images) or len(caption_texts) != len(captions):
        raise UsageError(
            f"embeddings {path}: images {shapes[0]} and captions {shapes[1]} do not fit each other or their "
            f"{len(image_keys)} keys and {len(caption_texts)} texts"
        )
    if not (np.isfinite(images).all() and np.isfinite(captions).all()):
        raise UsageError(f"embeddings {path} holds numbers that are not finite")
    places: dict[str, int] = {}
    for number, key in enumerate(image_keys):
        if places.setdefault(key, number) != number:
            raise UsageError(f"embeddings {path} names image {key!r} twice")
    missing = [key for key in keys if key not in places]
    if missing:
        raise UsageError(f"embeddings {path} lacks image {missing[0]!r} (one of {len(missing)})")
    if caption_texts[: len(texts)] != texts:
        number = next(n for n, text in enumerate(texts) if n >= len(caption_texts) or caption_texts[n] != text)
        raise UsageError(
            f"embeddings {path}: caption {number} is not {texts[number][:40]!r}: keep the order of the store's split"
        )
    return Embeddings(images[[places[key] for key in keys]], captions[: len(texts)])


class TwoStep(NamedTuple):
    """What a search in two steps finds: candidates by vectors, then those by their scores."""

    ranks: Ranks
    by_vectors: Ranks  # of the vectors alone
    for_text: Numbers  # [N, K] candidates of each caption
    for_image: Numbers  # [I, K] of each image
    pairs: int  # that were scored
    seconds: float
    seconds_finding: float  # of them, until the candidates were there

    def figures(self, exact: NDArray[np.float32] | None = None) -> dict[str, Any]:
        """Recalls and costs; beside an exact matrix [I, N] also how much of its top ten is among the candidates."""
        found: dict[str, Any] = {
            "candidates": self.for_text.shape[1],
            "pairs": self.pairs,
            "seconds": self.seconds,
            "seconds_finding": self.seconds_finding,
            "ir": recalls(self.ranks.image_retrieval),
            "tr": recalls(self.ranks.text_retrieval),
            "vectors": {
                "ir": recalls(self.by_vectors.image_retrieval),
                "tr": recalls(self.by_vectors.text_retrieval),
            },
        }
        if exact is not None:
            found["ir"]["recall_of_exact_top_10"] = _overlap(exact.T, self.for_text)
            found["tr"]["recall_of_exact_top_10"] = _overlap(exact, self.for_image)
        return found


def two_step(
    scorer: PairScorer,
    images: Numbers,
    captions: Numbers,
    caption_image: Numbers,
    count: int,
    given: Embeddings | None = None,
) -> TwoStep:
    """Ranks when only `count` candidates of each query are scored.

    A query whose answer is not among its candidates has the worst rank of all. Scores are computed anew, so that the
    seconds are real.

    Args:
        images, captions: [I] and [N] numbers of what is searched
        caption_image: [N] which of `images` each caption belongs to
        given: vectors of those; None: the dual head's
    """
    begun = time.perf_counter()
    if given is None:
        given = Embeddings(scorer.image_vectors(images), scorer.text_vectors(captions))
    for_text = nearest(given.captions, given.images, count)  # [N, K] rows
    for_image = nearest(given.images, given.captions, count)  # [I, K] columns
    seconds_finding = time.perf_counter() - begun
    width = len(captions)
    places = np.unique(
        np.concatenate([
            (for_text * width + np.arange(width)[:, None]).ravel(),
            (np.arange(len(images))[:, None] * width + for_image).ravel(),
        ])
    )  # fmt: skip
    scores = np.empty(len(places), np.float32)
    for part in np.array_split(np.arange(len(places)), max(1, len(places) // 4096)):
        rows, columns = np.divmod(places[part], width)
        scores[part] = scorer(images[rows], captions[columns])
    seconds = time.perf_counter() - begun

    def found(rows: Numbers, columns: Numbers) -> NDArray[np.float32]:
        return scores[np.searchsorted(places, rows * width + columns)]

    by_text = found(for_text, np.arange(width)[:, None])  # [N, K]
    right = for_text == caption_image[:, None]
    truth = np.where(right, by_text, -np.inf).max(axis=1)
    text_ranks = np.where(right.any(axis=1), (by_text >= truth[:, None]).sum(axis=1), len(images))
    by_image = found(np.arange(len(images))[:, None], for_image)  # [I, K]
    own = caption_image[for_image] == np.arange(len(images))[:, None]
    best = np.where(own, by_image, -np.inf).max(axis=1)
    wrong_above = ((by_image >= best[:, None]) & ~own).sum(axis=1)
    image_ranks = np.where(own.any(axis=1), 1 + wrong_above, width)
    by_vectors = rank(given.images @ given.captions.T, caption_image)
    ranks = Ranks(text_ranks, image_ranks)
    return TwoStep(ranks, by_vectors, for_text, for_image, len(places), seconds, seconds_finding)


def _overlap(exact: NDArray[np.float32], candidates: Numbers) -> float:
    """Percent of the exact order's first ten that are among the candidates, over all queries [Q, N] and [Q, K]."""
    top = min(_TOP, exact.shape[1])
    best = np.argpartition(-exact, top - 1, axis=1)[:, :top]
    inside = (best[:, :, None] == candidates[:, None, :]).any(axis=2)
    return float(100 * inside.mean())
