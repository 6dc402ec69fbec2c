"""Report of facts: P@k of each wording with intervals, tests between wordings, means over relations; plain data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.prompting.facts.fact_ranks import WordingRanks
from deltatune.training.inference.fill_mask import recall_at

NORMAL_95 = 1.959964
"""The 97.5 % quantile of the normal distribution."""


def fact_report(
    relations: Mapping[str, Sequence[WordingRanks]],
    objects: Mapping[str, Sequence[str]],
    tops: Sequence[int],
    repeats: Mapping[str, int],
) -> dict[str, Any]:
    """Scores of every wording of every relation, and their means, as plain data.

    objects: the object of each row of a relation. The first wording of a relation stands for it in `first`; `best` are
    the wordings that are best on these very rows, so they are too good for others; `mean` is over all wordings.
    Micro means are over all rows, macro means over the relations, as in Petroni et al. 2019.
    """
    listed = [
        relation_report(name, ranks, objects[name], tops, repeats.get(name, 0)) for name, ranks in relations.items()
    ]
    scored = [each for each in listed if any(wording["rows"] for wording in each["wordings"])]
    return {"relations": listed, "means": _means(scored, tops) if scored else {}}


def relation_report(
    relation: str, wordings: Sequence[WordingRanks], objects: Sequence[str], tops: Sequence[int], repeats: int
) -> dict[str, Any]:
    """Scores of the wordings of one relation."""
    first = wordings[0]
    counted = [object for object, rank in zip(objects, first.ranks, strict=True) if rank is not None]
    answer, times = Counter(counted).most_common(1)[0] if counted else ("", 0)
    records = [
        wording_record(each, tops) | ({} if i == 0 else {"against_first": paired_test(each.ranks, first.ranks)})
        for i, each in enumerate(wordings)
    ]
    return {
        "relation": relation,
        "rows": len(objects),
        "repeats": repeats,
        "most_frequent": {"object": answer, "p@1": times / len(counted) if counted else None},
        "wordings": records,
    }


def wording_record(ranks: WordingRanks, tops: Sequence[int]) -> dict[str, Any]:
    """Scores of one wording."""
    counted = ranks.counted
    hits = sum(rank == 1 for rank in counted)
    return {
        "wording": ranks.wording,
        "source": ranks.source,
        "rows": len(counted),
        "left_out": ranks.left_out,
        **{f"p@{k}": recall_at(counted, k) if counted else None for k in tops},
        "mrr": sum(1 / rank for rank in counted) / len(counted) if counted else None,
        "interval": list(wilson_interval(hits, len(counted))) if counted else None,
        "cost": ranks.cost.to_json(),
        **({} if ranks.training is None else {"training": dict(ranks.training)}),
    }


def wilson_interval(hits: int, rows: int) -> tuple[float, float]:
    """The 95 % interval of a share of independent rows; Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953."""
    share, z2 = hits / rows, NORMAL_95**2
    centre = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = NORMAL_95 / (1 + z2 / rows) * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows**2))
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == rows else centre + half)


def paired_test(ranks: Sequence[int | None], others: Sequence[int | None]) -> dict[str, Any]:
    """Exact two-sided test of two wordings' P@1 on the rows that both count; McNemar 1947.

    `gained` rows are right in the first alone, `lost` in the second alone; `p` is the probability of a difference as
    large if neither were better.
    """
    pairs = [(a == 1, b == 1) for a, b in zip(ranks, others, strict=True) if a is not None and b is not None]
    gained, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    n, fewer = gained + lost, min(gained, lost)
    tail, term = 0, 1  # sums of binomial coefficients, exact in Python's integers
    for i in range(fewer + 1):
        tail += term
        term = term * (n - i) // (i + 1)
    return {"rows": len(pairs), "gained": gained, "lost": lost, "p": min(1.0, 2 * tail / 2**n)}


def _means(relations: Sequence[Mapping[str, Any]], tops: Sequence[int]) -> dict[str, Any]:
    """Means over relations and rows of first wordings, best ones, all wordings, and each method that was trained."""
    names = [f"p@{k}" for k in tops]
    kinds: dict[str, list[Mapping[str, Any]]] = {"first": [], "best": []}
    trained: dict[str, list[Mapping[str, Any]]] = {}
    for relation in relations:
        usable = [each for each in relation["wordings"] if each["rows"]]
        plain = [each for each in usable if each["source"] == "wording"]
        if plain:
            kinds["first"].append(plain[0])
            kinds["best"].append(max(plain, key=lambda each: each[names[0]]))
        for each in usable:
            if each["source"] == "adapter":
                kinds.setdefault("adapter", []).append(each)
            elif each["source"] == "trained":
                trained.setdefault(each["wording"], []).append(each)
    means: dict[str, Any] = {kind: _micro_macro(records, names) for kind, records in kinds.items() if records}
    if trained:
        means["trained"] = {method: _micro_macro(records, names) for method, records in trained.items()}
    spreads = []
    for relation in relations:
        scores = [each[names[0]] for each in relation["wordings"] if each["rows"] and each["source"] == "wording"]
        if scores:
            mean = sum(scores) / len(scores)
            deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
            spread = {"mean": mean, "low": min(scores), "high": max(scores), "deviation": deviation}
            spreads.append({"wordings": len(scores), **spread})
    always = [(each["most_frequent"]["p@1"], each["wordings"][0]["rows"]) for each in relations]
    always = [(share, rows) for share, rows in always if share is not None]
    if always:
        total = sum(rows for _, rows in always)
        means["most_frequent"] = {
            "relations": len(always),
            "rows": total,
            "micro": {"p@1": sum(share * rows for share, rows in always) / total},
            "macro": {"p@1": sum(share for share, _ in always) / len(always)},
        }
    if spreads:
        means["all"] = {
            "wordings": sum(each["wordings"] for each in spreads),
            **{
                f"macro_{key}": sum(each[key] for each in spreads) / len(spreads)
                for key in ("mean", "low", "high", "deviation")
            },
        }
    return means


def _micro_macro(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    rows = sum(each["rows"] for each in records)
    return {
        "relations": len(records),
        "rows": rows,
        "micro": {name: sum(each[name] * each["rows"] for each in records) / rows for name in names},
        "macro": {name: sum(each[name] for each in records) / len(records) for name in names},
    }


def remarks(report: Mapping[str, Any]) -> list[str]:
    """What the figures say and what they do not, in sentences."""
    several = len(report["relations"]) == 1 and len(report["relations"][0]["wordings"]) > 1
    lines = [
        "P@1 is the share of the counted rows whose object is the likeliest word at the blank; its 95 % interval "
        "(Wilson) is for rows drawn like these."
    ]
    if several:
        lines.append(
            "p is an exact paired test (McNemar) against the first wording on the same rows, not adjusted for the "
            "number of wordings."
        )
    lines.append(
        "A wrong answer does not show that the model lacks the fact, for another wording may find it; a right one may "
        "come from how often the object occurs: compare the line of the most frequent object."
    )
    return lines
