"""A mean over groups with its error by cluster, in plain loops: what summaries.sql says, written anew."""

from __future__ import annotations

from collections import defaultdict
from math import isnan, sqrt


def mean_and_error(values, weights, groups, clusters):
    """(mean, error, clusters, degrees of freedom); None for what is not defined."""
    inside = defaultdict(lambda: defaultdict(list))  # {group: {cluster: [(value, weight)]}}
    for value, weight, group, cluster in zip(values, weights, groups, clusters, strict=True):
        if not isnan(value) and weight > 0:
            inside[group][cluster].append((value, weight))
    if not inside:
        return None, None, 0, None
    means = {}
    for group, members in inside.items():
        rows = [row for rows in members.values() for row in rows]
        means[group] = sum(v * w for v, w in rows) / sum(w for _, w in rows)
    mean = sum(means.values()) / len(means)
    count = len({cluster for members in inside.values() for cluster in members})
    if count < 2:
        return mean, None, count, None
    units = min(count, len(means))
    moved, strata, lone = defaultdict(float), [], []
    for group, members in inside.items():
        total = sum(w for rows in members.values() for _, w in rows)
        if len(members) == 1:
            lone.append(sqrt(units / (units - 1)) * (means[group] - mean))
            moved[next(iter(members))] += lone[-1]
            continue
        larger = sqrt(len(members) / (len(members) - 1))
        parts = [larger * sum(w * (v - means[group]) for v, w in rows) / total for rows in members.values()]
        for cluster, part in zip(members, parts, strict=True):
            moved[cluster] += part
        strata.append((sum(p * p for p in parts), len(members) - 1))
    if lone:
        strata.append((sum(p * p for p in lone), min(len(lone), units - 1)))
    error = sqrt(sum(e * e for e in moved.values())) / len(means)
    most = min(count - 1, sum(df for _, df in strata))
    below = sum(v * v / (df + 2) for v, df in strata)
    df = min(most, max(1, sum(v for v, _ in strata) ** 2 / below - 2)) if below else most
    return mean, error, count, df
