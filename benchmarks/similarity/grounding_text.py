"""What the page says of the grounding tests: how they were done, what each can show, and how numbers are written."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.similarity.grounding_networks import MEASURES, SHORT
from fscl.text import decimal

__all__ = ["IMAGES", "STREAMS", "count", "explained", "interval", "number", "scaled", "setting"]

IMAGES = {"fmnist": "Fashion-MNIST", "cifar100": "CIFAR-100"}
STREAMS = {
    "circle": "rotations around the circle",
    "fan": "rotations within a fan",
    "windows": "class sets that overlap",
    "superclasses": "superclasses",
}
Results = Sequence[Mapping[str, Any]]


def setting(results: Results) -> str:
    budgets = []
    for images in dict.fromkeys(r["images"] for r in results):
        r = next(r for r in results if r["images"] == images)
        b = r["budget"]
        budgets.append(
            f"{IMAGES[images]}: {b['images']:,} images a task and {count(b['epochs'], 'epoch')}, {r['first_images']:,} "
            f"images and {b['first_epochs']} epochs of the first (accuracy {100 * r['first_accuracy']:.1f} %)"
        )
    r = results[0]
    return (
        "A similarity can agree with another one and yet be of no use. So these tests ask what Ding, Denain and "
        "Steinhardt (2021) asked: does it see what matters for what a network does, and not see what does not? All "
        "networks of a test are learned from the network of one first task, over its coefficients: atoms, "
        f"normalisation and head alone are trained. {'; '.join(budgets)}. Images are recalled from the first task's "
        f"network ({r['recalled']} of them, from dead leaves). The rivals see {r['probed']} test images, as many of "
        f"each task compared, at {r['positions']} places each; a network's value is the mean over its layers. "
        "Intervals are at 95 % and leave out networks or tasks, never pairs (jackknife; for shares and ranks, t "
        "intervals over networks or tasks). They say how far other networks from the same first one would differ, not "
        "other first ones."
    )


def explained(r: Mapping[str, Any]) -> str:
    """What a test can show and what it cannot."""
    kind, scores, images = r["kind"], r["scores"], IMAGES[r["images"]]
    if kind == "noise":
        levels = list(dict.fromkeys(r["groups"]))
        reached = [np.mean([a for a, g in zip(r["accuracy"], r["groups"], strict=True) if g == x]) for x in levels]
        trivial = decimal(scores["separation"].get("accuracy", {}).get("score"))
        return (
            f"**Label noise, {images}.** One task, of whose training labels {', '.join(levels)} are drawn anew, "
            f"{len(r['groups']) // len(levels)} networks each with images, order, head and noise of their own: "
            f"{len(r['groups'])} networks. Accuracy on clean test images is {spoken([100 * x for x in reached])} %. A "
            "good score means that similarity sees how reliable the labels were, beyond what differs between any two "
            f"networks; neighbouring levels may well be alike. Similarity of test accuracy alone scores {trivial}."
        )
    if kind == "seeds":
        names = list(dict.fromkeys(r["groups"]))
        near = f"turned by {', '.join(names)}" if r["images"] == "fmnist" else "sets of ten classes that share none"
        return (
            f"**Seeds, {images}.** {len(names)} tasks, {near}; {len(r['groups']) // len(names)} networks each with "
            "images, order and head of their own. All start from one network: what is tested is whether similarity "
            "ignores chance "
            "in training, not whether it ignores the start, which it cannot (see where it fails)."
        )
    if kind == "damage":
        ranks = {where: decimal(scores[where].get("size", {}).get("score")) for where in scores}
        sizes = len(r["size"]) // (r["draws"] * len(set(r["where"])))
        layers = [where for where in scores if where not in ("all layers", "any one layer")]
        lowest = {key: min((number(scores[w][key]["score"]) for w in layers), default=math.nan) for key in MEASURES}
        return (
            f"**Damage, {images}.** Normal noise on the atoms of one trained network (accuracy "
            f"{100 * r['accuracy'][0]:.1f} %), {sizes} sizes, {count(r['draws'], 'draw')} each, in all "
            f"{len(r['size'])} networks. In all layers at once the size of the noise alone scores "
            f"{ranks['all layers']}: whatever falls as noise grows passes. Which layer matters how much is the harder "
            f"question: with noise in any one layer its size alone scores {ranks['any one layer']}. In the worst "
            "single layer the scores are "
            f"{', '.join(f'{SHORT[key]} {decimal(value)}' for key, value in lowest.items())}."
        )
    tasks, runs = len(r["groups"]), count(r["first_networks"], "run")
    ends = (
        f"Transfer is the accuracy, on one task, of another's features: nearest mean of {r['per_class']} training "
        f"images a class, of what enters the head, nothing trained. {tasks} tasks, {runs}."
    )
    truth = scores.get("angle") or scores.get("shared")
    known = "" if truth is None or "transfer" not in truth else _behaviour(truth["transfer"], "angle" in scores)
    if kind in ("circle", "fan"):
        return (
            f"**{STREAMS[kind][0].upper() + STREAMS[kind][1:]}.** Fashion-MNIST turned by {r['angles'][0]} to "
            f"{r['angles'][-1]} degrees, {r['angles'][1] - r['angles'][0]} apart. {known} {ends}"
        )
    if kind == "windows":
        return (
            "**Class sets that overlap.** CIFAR-100, ten neighbours each in one list of classes in random order: tasks "
            f"share 0 to 9 classes, and some of the images of these. {known} {ends}"
        )
    return (
        f"**Superclasses.** CIFAR-100, {tasks} tasks of five classes each in {tasks // 2} pairs. The tasks of a pair "
        "have the same two superclasses and not one class or image in common; superclasses were paired at random. "
        f"{ends}"
    )


def _behaviour(row: Mapping[str, Any], angle: bool) -> str:
    what = "the angle between tasks" if angle else "the number of shared classes"
    return (
        f"How well features transfer (less each task's mean) itself correlates with {what} at "
        f"{interval(row.get('score'), row.get('low'), row.get('high'))}: so much of this geometry is there in what "
        "networks do."
    )


def number(value: Any) -> float:
    return math.nan if value is None else float(value)


def interval(value: Any, low: Any, high: Any, form: str = ".2f") -> str:
    if math.isnan(number(value)):
        return "undefined"
    if math.isnan(number(low)) or math.isnan(number(high)):
        return f"{number(value):{form}}"
    return f"{number(value):{form}} [{number(low):{form}}, {number(high):{form}}]"


def scaled(row: Mapping[str, Any], scale: float) -> str:
    value, low, high = (scale * number(row.get(key)) for key in ("score", "low", "high"))
    return interval(value, low, high, ".1f")


def spoken(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
