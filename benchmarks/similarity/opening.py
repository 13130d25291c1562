"""What the page begins with: what is compared, by what, and how each goal of the page came out."""

from collections.abc import Sequence

from benchmarks.similarity.contents import RUNGS, Block, Part, Table

__all__ = ["opening"]

LEAD = (
    "Networks that share coefficients can be compared by a cosine of their filter atoms, at a millionth of the cost of "
    "CKA or CCA, says the literature (Chen, Miao, Qiu 2023; Miao et al. 2022). Here is how far that holds, where it "
    "fails, and what comes closer, still without data."
)
DEFINITIONS = (
    "A filter is `coefficients x atoms`. Tasks share the coefficients and have atoms of their own, so that a channel "
    "means the same in all of their networks: they can be compared by their atoms, without data. This page asks how "
    "far such comparisons can be believed. The yardsticks, CKA and CCA, pass real images through every network; they "
    "are put to the same tests. Five ways to compare do without data:",
    "**Cosine of atoms, over depth.** In each layer the cosine of two tasks' atoms, squared. A layer's features depend "
    "on all layers before it, so that these factors are multiplied from the first layer to it; a network's similarity "
    "is the mean over its layers. No pass, no image.",
    "**Moments through the layers.** The correlation of two tasks' features, followed from layer to layer in closed "
    "form. It begins as that of natural images, whose amplitudes fall as 1/f. Atoms and coefficients say what a "
    "convolution makes of it, normalisation and the rectifier after it how much each channel counts. No image either.",
    "**Recalled images.** What follows needs something to look at. Dead leaves, images of discs and rectangles that "
    "overlap at random, are changed until they cause the means and variances that the networks' normalisation layers "
    "remember of their training (after Yin et al. 2020). No data is needed for this: it is done once, from the "
    "networks alone.",
    "**Response to recalled images.** The features that two tasks' networks give for the recalled images, compared "
    "channel by channel: their squared cosine, mean over layers. One pass a task.",
    "**Three readings of recalled images.** The mean of that squared cosine, of linear CKA and of mean CCA, all of the "
    "same passes. CKA sees the directions of much variance, CCA all alike: what is to agree with both must heed both.",
    "**Tangent on recalled images.** The same, of features to first order in the atoms about one task's network: "
    "derivatives of one network in place of a pass a task.",
)


def opening(parts: Sequence[Part]) -> Part:
    """The first section: definitions, and all goals in one table."""
    goals = [goal for part in parts for goal in part.goals]
    blocks: list[Block] = list(DEFINITIONS)
    if goals:
        keys = [*RUNGS, *(["like"] if any("like" in goal.reached for goal in goals) else [])]
        titles = {**RUNGS, "like": "CKA and CCA on recalled images"}
        caption = (
            "What was to be reached, and in how many cases it was; undecided: below CKA by less than the 95 % interval "
            "of the difference. The sections below hold the numbers."
        )
        rows = [[goal.what, *(goal.reached.get(key, "–") for key in keys)] for goal in goals]
        blocks.append(Table(caption, ["goal", *(titles[key] for key in keys)], rows))
    return Part("What is compared, and what came out", LEAD, blocks)
