"""A comparison as text for a terminal: a line for each network, the verdict, the groups and what was left out."""

import math

from fscl.compare.comparison import NAMED, WELL_EXPLAINED, Comparison
from fscl.errors import printable
from fscl.plots.clusters import short_names
from fscl.text import decimals, percent

__all__ = ["bank_note", "lines"]


def lines(comparison: Comparison) -> list[str]:
    """The lines for a terminal: one for each network, the verdict, the groups."""
    joint, several = comparison.joint, len(comparison.groups) > 1
    names = dict(zip(joint.names, short_names(joint.names, 26), strict=True))
    width = max(10, *map(len, names.values()))
    shares = dict(zip(joint.names, joint.shares.tolist(), strict=True))
    text = [f"{'checkpoint':<{width}} {'group ' if several else ''}explained  most alike"]
    alone = {group.members[0] for group in comparison.groups if len(group.members) == 1}
    alike = {name: comparison.nearest(name) for name in names if name not in alone}
    # the closest pair, copies aside, shows two digits of its distance from 1
    places = decimals(min((1 - s for _, s in alike.values() if 1 - s > 1e-7), default=1.0), least=3, most=6)
    for name, short in names.items():
        of = f"{comparison.group_of(name):>5} " if several else ""
        nearest, similarity = alike.get(name, ("", 0.0))
        most = f"{names[nearest]} ({similarity:.{places}f})" if nearest else "none of its start"
        text.append(f"{short:<{width}} {of}{percent(shares[name]):>9}  {most}")
    of_each = f", {comparison.num_atoms} for each of {len(comparison.groups)} starts" if several else ""
    text += [
        "",
        f"{len(names)} checkpoints, {len(joint.layers)} layers, {comparison.metric} ({comparison.aggregate} over "
        f"layers) of {joint.num_atoms} atoms{of_each}",
        *_not_compared(comparison),
        comparison.verdict[0].upper() + comparison.verdict[1:],
    ]
    for number, group in enumerate(comparison.groups if several else [], 1):
        if len(group.members) > 1:
            shown = [names[name] for name in group.members[:NAMED]]
            omitted = f" and {len(group.members) - NAMED} more" * (len(group.members) > NAMED)
            explained = f"{percent(group.share)} explained by {comparison.num_atoms} atoms of its own"
            if group.least < WELL_EXPLAINED:
                explained += f", as little as {percent(group.least)} in one"
            text.append(f"  group {number}: {', '.join(shown)}{omitted} ({explained})")
    return text


def _not_compared(comparison: Comparison) -> list[str]:
    """The lines for a terminal about layers that were not compared, one for each reason."""
    text = []
    if comparison.joint.head is not None:
        text.append(printable(f"Not compared: {comparison.joint.head} (the head, which each task has for itself)"))
    layers: dict[str, list[str]] = {}
    for layer, (reason, _) in comparison.not_compared.items():
        layers.setdefault(reason.replace(layer, "..."), []).append(layer)
    for reason, names in layers.items():
        omitted = f" and {len(names) - NAMED} more" * (len(names) > NAMED)
        text.append(printable(f"Not compared: {', '.join(names[:NAMED])}{omitted} ({reason})"))
    return text


def bank_note(comparison: Comparison) -> str:
    """How far the networks of a bank are from the checkpoints, and how to get equal ones; empty if they are equal."""
    off = math.sqrt(max(0.0, 1 - float(comparison.joint.bank_shares.min())))
    if off < 1e-5:  # rounding of float32
        return ""
    enough = math.ceil(9 * len(comparison.joint.names) / len(comparison.groups))
    return (
        f"the bank restores filters only to within {100 * off:.2g} % of their norm, so its networks compute something "
        f"else; --atoms {enough} restores filters and networks exactly"
    )
