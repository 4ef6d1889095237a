"""Items: their ids, how popular they are, and what is true of each (side-info).

Popularity is Zipf: the item of rank k is drawn with a probability of about k ** -exponent. Ids say nothing about ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

CATEGORIES: Final = 1_000
BRANDS: Final = 4_000
GENRES: Final = 64
TOPICS: Final = 5_000
ITEMS_PER_AUTHOR: Final = 5
SIDE_INFO_BYTES: Final = 68
"""Of one item, packed."""
_NEWEST_MS: Final = 1_735_689_600_000
_YEAR_MS: Final = 365 * 86_400_000

Columns = Mapping[str, npt.NDArray[np.generic]]


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser: distinct values stay distinct and look random."""
    bits: npt.NDArray[np.uint64] = values + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All items. The same fields give the same items."""

    seed: int
    item_count: int = 100_000
    zipf_exponent: float = 1.05
    """Not 1. Higher: the popular items take more of the events."""
    has_random_ids: bool = False
    """Ids are random 64-bit numbers (hashes), about 6 bytes an event harder to compress; else 0 .. item_count - 1."""

    def __post_init__(self) -> None:
        if self.item_count < 1 or self.zipf_exponent <= 0 or self.zipf_exponent == 1:
            raise ValueError("at least one item, and an exponent above 0 other than 1, are needed")

    @cached_property
    def id_of_rank(self) -> npt.NDArray[np.uint64]:
        """Item id by popularity, the most popular first."""
        ids = np.random.default_rng((self.seed, 1)).permutation(self.item_count).astype(np.uint64)
        return mixed(ids) if self.has_random_ids else ids

    def draw(self, count: int, rng: np.random.Generator) -> npt.NDArray[np.uint64]:
        """Ids of items drawn by popularity: a Pareto variable bounded to [1, item_count + 1), rounded down to a rank.

        Closed form: 20 ns a draw, where a search in the cumulated probabilities of 100,000 items takes 150.
        """
        power = 1.0 - self.zipf_exponent
        reach = (self.item_count + 1.0) ** power - 1.0
        rank: npt.NDArray[np.int64] = ((1.0 + rng.random(count) * reach) ** (1.0 / power)).astype(np.int64) - 1
        return np.take(self.id_of_rank, rank, mode="clip")

    @cached_property
    def item_ids(self) -> npt.NDArray[np.uint64]:
        """All ids, ascending: the order of the rows of `side_info`."""
        return np.sort(self.id_of_rank)

    @cached_property
    def side_info(self) -> Columns:
        """Side-info columns of examples/schema.yaml, a row an item. Authors have about five items each; the attributes
        that describe an item are drawn with a skew, and its topics and genres lean on its category."""
        rng, count = np.random.default_rng((self.seed, 2)), self.item_count
        category = _skewed(rng, CATEGORIES, count)
        author = rng.integers(0, max(1, count // ITEMS_PER_AUTHOR), count, np.uint64)
        return {
            "category": category.astype(np.uint32),
            "author": mixed(author),
            "price": np.round(rng.lognormal(np.log(25.0), 1.0, count), 2).astype(np.float32),
            "genres": ((category[:, None] + _skewed(rng, 16, (count, 4))) % GENRES).astype(np.uint16),
            "brand": _skewed(rng, BRANDS, count).astype(np.uint32),
            "published_ms": _NEWEST_MS - rng.integers(0, 3 * _YEAR_MS, count, np.int64),
            "topics": ((category[:, None] * 7 + _skewed(rng, 200, (count, 4))) % TOPICS).astype(np.uint32),
            "rates": (rng.beta(2.0, 20.0, (count, 4)) * (1.0, 0.3, 0.1, 0.02)).astype(np.float32),
        }


def _skewed(rng: np.random.Generator, values: int, shape: int | tuple[int, int]) -> npt.NDArray[np.int64]:
    """0 .. values - 1, the lower ones more often."""
    return (rng.random(shape) ** 2 * values).astype(np.int64)
