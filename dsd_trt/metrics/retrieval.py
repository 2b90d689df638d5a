"""Quality of rankings: what a search found of what is relevant to each query."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any

from dsd_trt.errors import InputError
from dsd_trt.ranking import checked_count

Rankings = Mapping[Any, Sequence[Any]]
Relevant = Mapping[Any, Collection[Any]]


def recall_at(rankings: Rankings, relevant: Relevant, k: int) -> float:
    """Recall@k: the share of a query's relevant items that are among its first k, on average.

    Args:
        rankings: items found for each query, best first. A query that is missing found nothing.
        relevant: all items that are relevant to each query, found or not.
        k: number of items of a ranking that count.

    Raises:
        InputError: there is no query, a query has no relevant item, or `k` is no positive count.
    """
    k = checked_count(k, "k")
    found = [
        len(wanted & set(islice(rankings.get(query, ()), k))) / len(wanted)
        for query, wanted in _checked(relevant).items()
    ]
    return sum(found) / len(found)


def mean_reciprocal_rank(rankings: Rankings, relevant: Relevant) -> float:
    """MRR: one over the rank of a query's first relevant item, 0 if none was found, on average.

    Args:
        rankings: items found for each query, best first. A query that is missing found nothing.
        relevant: all items that are relevant to each query, found or not.

    Raises:
        InputError: there is no query, or a query has no relevant item.
    """
    wanted = _checked(relevant)
    total = 0.0
    for query, items in wanted.items():
        ranks = (rank for rank, item in enumerate(rankings.get(query, ()), 1) if item in items)
        if (first := next(ranks, None)) is not None:
            total += 1 / first
    return total / len(wanted)


def _checked(relevant: Relevant) -> dict[Any, set[Any]]:
    """Relevant items of each query.

    Raises:
        InputError: there is no query, or a query has no relevant item.
    """
    wanted = {query: set(items) for query, items in relevant.items()}
    if not wanted:
        raise InputError("there is no query to measure")
    for query, items in wanted.items():
        if not items:
            raise InputError(f"nothing is relevant to the query {query!r}: leave it out")
    return wanted
