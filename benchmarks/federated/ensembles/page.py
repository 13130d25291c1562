"""The study as a Markdown page. Numbers become text here."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.federated.ensembles.cost import RATIOS
from benchmarks.federated.ensembles.picking import BY_ATOMS, DRAWS, PICKINGS
from benchmarks.federated.ensembles.summary import Difference, Outcome, Run, difference, finding, outcomes
from benchmarks.similarity.formats import seconds, times
from fscl.text import DASH, decimal, interval, points

__all__ = ["page"]

RIVALS = ("atoms", "cka", "svcca", "labels", "all", "base")  # that atoms less their mean are compared with
IN_SHORT = ("random", "atoms", "centred", "cka", "svcca", "all")  # of the table at the beginning


def page(results: dict[str, Any]) -> str:
    """The page of what :func:`study <benchmarks.federated.ensembles.__main__.study>` measured."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for row in results["runs"]:
        by_method.setdefault(row["title"], []).append(row)
    runs: dict[str, list[Run]] = {title: [row["pickings"] for row in rows] for title, rows in by_method.items()}
    found = {title: outcomes(of_method) for title, of_method in runs.items()}
    by_atoms = {title: outcome for title, outcome in found.items() if "atoms" in outcome}
    parts = [
        *_answers(by_atoms),
        *_setting(results, by_method),
        "## Accuracy of ensembles",
        "Mean over clients of the accuracy on their own images, in %, ± sample standard deviation over n seeds; the "
        "worst tenth of the clients; what is gained over each client's own network; the same less random members, with "
        f"its 95 % interval over {_over([outcome['random'].minus_random for outcome in found.values()])}; and the "
        "share of the gain of all clients, which is not defined where all clients gain nothing.",
        _table(
            ["method", "members", "accuracy", "n", "worst tenth", "gain", "less random", "share of all"],
            [_row(title, name, outcome[name]) for title, outcome in found.items() for name in outcome],
        ),
        *_without_atoms(by_method, found),
    ]
    if by_atoms:
        head = ["atoms less their mean, minus", *(PICKINGS[name] for name in RIVALS)]
        cells = [
            [title, *(_difference(difference(runs[title], "centred", name)) for name in RIVALS)] for title in by_atoms
        ]
        parts += [
            "## Atoms less their mean against other pickings", "In points, with 95 % intervals as above.",
            _table(head, cells),
        ]  # fmt: skip
    if results["cost"]:
        parts += _cost(results["cost"])
    return "\n\n".join([*parts, _provenance(results)]) + "\n"


def _answers(by_atoms: dict[str, dict[str, Outcome]]) -> list[str]:
    """The two findings, and the gains by method."""
    if not by_atoms:
        return ["# No members can be picked by atoms: with every method all clients have the same filters"]
    centred, plain = (finding(picking, list(by_atoms.values())) for picking in ("centred", "atoms"))
    head = ["method", *(PICKINGS[name] for name in IN_SHORT)]
    cells = [
        [title, *(points(outcome[name].gain, sign=True) for name in IN_SHORT)] for title, outcome in by_atoms.items()
    ]
    return [
        f"# {centred}",
        f"{plain}. That is the comparison of the source paper, whose table has no random members.",
        "Gains over each client's own network, in points:",
        _table(head, cells),
    ]


def _setting(results: dict[str, Any], by_method: dict[str, list[dict[str, Any]]]) -> list[str]:
    first = results["runs"][0]
    joint = [f"{title} {100 * min(row['explained'] for row in rows):.1f} %"
             for title, rows in by_method.items() if any(row["atoms"] == "joint" for row in rows)]  # fmt: skip
    off = max(row["off_record"] for row in results["runs"])
    paragraphs = [
        f"{results['benchmark']}: {first['clients']} clients. An ensemble has {results['members']} networks, that of "
        "the client included. Its answer is the largest mean of the softmax probabilities"
        " among the classes from which the client chooses in its run. Nothing is trained, but methods that fine-tune "
        "before they answer do so, as in their run.",
        "- **Atoms** are compared as they are, as in the paper: the cosine of the filters of each layer, as a mean "
        "over layers. It needs no data. Networks that share coefficients are compared by their own atoms"
        + (
            f". The filters of all clients of the other methods are decomposed jointly; their atoms hold at least "
            f"{', '.join(joint)} of the filters."
            if joint
            else "."
        )
        + "\n- *Less their mean over clients*: the same for what is left of the atoms without their mean over all "
        "clients. Networks of one start have a large part in common, which tells nothing."
        "\n- *As the server compares them*: the similarity in the run's record, which the server of some methods "
        "uses: of atoms less what the clients of a round have in common, or of changes of whole networks."
        f"\n- **CKA and SVCCA** compare the output of the last convolution (`{first['layer']}`), as means over "
        f"positions, {first['channels']} features, for {first['probed']:,} training images of all clients. A real "
        "server has no such images. CKA is unbiased, in batches of at most 256; SVCCA keeps 99 % of the variance."
        f"\n- **Random** members, and those from a group, are means over {DRAWS} draws. Equal similarities are decided "
        "by lot."
        "\n- **Oracles** know what no server knows: labels compare the clients' numbers of images by class.",
    ]
    agree = (
        "The accuracies of clients' own networks are those of the runs' records, to the last image."
        if off == 0
        else f"The accuracy of a client's own network is off the run's record by at most {points(off)} points."
    )
    return [*paragraphs, agree]


def _without_atoms(by_method: dict[str, list[dict[str, Any]]], found: dict[str, dict[str, Outcome]]) -> list[str]:
    equal = [title for title in by_method if "atoms" not in found[title]]
    if not equal:
        return []
    return [
        f"{', '.join(equal)}: all clients have the same filters, so atoms cannot pick ({len(BY_ATOMS)} rows are "
        "missing). Their networks differ in what stays at a client, such as normalisation and head."
    ]


def _row(title: str, name: str, outcome: Outcome) -> list[str]:
    accuracy, worst = outcome.accuracy, outcome.worst_tenth
    share = None if outcome.share is None or name == "base" else f"{decimal(100 * outcome.share, 0)} %"
    return [
        title,
        PICKINGS[name],
        points(accuracy.mean) + (f" ± {points(accuracy.std)}" if accuracy.n > 1 else ""),
        str(accuracy.n),
        points(worst.mean) + (f" ± {points(worst.std)}" if worst.n > 1 else ""),
        "" if name == "base" else points(outcome.gain, sign=True),
        "" if name == "random" else _difference(outcome.minus_random),
        share or DASH,
    ]


def _difference(value: Difference) -> str:
    return f"{points(value.mean, sign=True)} {interval(100 * value.low, 100 * value.high)}".strip()


def _over(differences: Sequence[Difference]) -> str:
    kinds = sorted({d.over for d in differences}) or ["seeds"]
    words = {
        "seeds": "seeds (t interval)",
        "clients": "the clients of the one seed (bootstrap; it says nothing of other seeds)",
    }
    return " or ".join(words[kind] for kind in kinds)


def _cost(cost: dict[str, Any]) -> list[str]:
    of_goal = [row for row in cost["flops"] if row["clients"] == cost["goal_clients"]]
    goals = []
    for name, words in RATIOS.items():
        reached = [
            f"{times(ratio)} times with {row['images']:,} images ({'' if ratio >= cost['goal'] else 'not '}met)"
            for row in of_goal
            for ratio in [row["ratios"][name]]
        ]
        goals.append(f"- {words}: {'; '.join(reached)}")
    flops = [
        [
            f"{row['clients']:,}", f"{row['images']:,}",
            *(f"{row[name]:.2e}" for name in ("atoms", "decomposed", "cka", "forward")),
            *map(times, row["ratios"].values()),
        ]
        for row in cost["flops"]
    ]  # fmt: skip
    taken = [
        [
            f"{row['clients']:,}", f"{row['images']:,}" + " *" * row["extrapolated"],
            *(_spread(row[name], seconds) for name in ("atoms", "cka", "forward")),
            _spread(row["ratio"], times),
        ]
        for row in cost["seconds"]
    ]  # fmt: skip
    layers = ", ".join(" x ".join(map(str, shape)) for shape in cost["shapes"].values())
    return [
        "## Cost of picking",
        f"The goal is that atoms take at least {cost['goal']:,} times fewer FLOPs than unbiased minibatch CKA for "
        f"{cost['goal_clients']} clients:",
        "\n".join(goals),
        f"FLOPs of all pairs of clients, for atoms of {layers} (as with {cost['method']}), {cost['features']} features "
        f"of an image, and {cost['flops_of_one_pass']:.3g} FLOPs a pass of one image of "
        f"{'x'.join(map(str, cost['image']))} through the network. A multiplication and an addition are 2 FLOPs. Atoms "
        "and the pass are counted by torch's FlopCounterMode, which sees matrix products and convolutions alone: of "
        "atoms it misses their normalisation, of CKA the centring of kernels, and of the pass normalisation, "
        "activations and pooling. It does not tell float64, in which both comparisons are done, from the float32 of "
        "the pass. CKA is computed by the formula for the same products (a test compares it with the counter), and "
        "passes are multiplied by clients and images. Networks without common coefficients are decomposed jointly "
        "first: its products are counted by a formula, its eigenvectors not at all. Atoms compare all layers, CKA one.",
        _table(
            ["clients", "images", "atoms", "with joint decomposition", "CKA of given features", "forward passes",
             "(CKA + passes) / atoms", "CKA / atoms", "(CKA + passes) / decomposed atoms"],
            flops,
        ),
        f"Seconds on {cost['threads']} thread{'s' * (cost['threads'] > 1)}, side by side in one run, as median and "
        "quartiles. Passes are timed with one network on a part of the images and scaled to all clients and images. A "
        "star marks times of CKA that are scaled from the smaller number of images.",
        _table(["clients", "images", "atoms", "CKA of given features", "forward passes", "(CKA + passes) / atoms"],
               taken),
    ]  # fmt: skip


def _spread(timed: dict[str, float], text: Callable[[float], str]) -> str:
    return f"{text(timed['median'])} [{text(timed['low'])}, {text(timed['high'])}]"


def _provenance(results: dict[str, Any]) -> str:
    made_by = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    machine = results["machine"]
    seeds = sorted({row["run_seed"] for row in results["runs"]})
    return (
        f"*{results['date']}; seeds {', '.join(map(str, seeds))}; {machine['processor']}, {machine['threads']} thread; "
        f"{made_by}; `python -m benchmarks.federated.ensembles RUNS --members {results['members']} --probe "
        f"{results['probe']} --seed {results['seed']}`.*"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["---", *(["---:"] * (len(head) - 1))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, align, *rows))
