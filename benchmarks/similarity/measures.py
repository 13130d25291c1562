"""The measures of the study, each with its title: the five that need no data, their variants, and the yardsticks."""

from dataclasses import dataclass

__all__ = [
    "COMPARED",
    "LIKE",
    "MEASURES",
    "METHODS",
    "OURS",
    "RIVALS",
    "SHORT",
    "VARIANTS",
    "YARDSTICKS",
    "Measure",
    "Method",
]


@dataclass(frozen=True)
class Measure:
    """One of the five ways to compare networks without data, and what the results of each section call it."""

    title: str
    short: str  # in the header of a wide table
    agreement: str
    grounding: str
    robustness: str
    chosen: str  # what somebody must choose to compute it


MEASURES = (  # from the cheapest to the dearest
    Measure("cosine of atoms, over depth", "atoms", "cosine_depth", "atoms", "cosine", "nothing"),
    Measure("moments through the layers", "moments", "moments", "moments", "moments", "nothing"),
    Measure(
        "tangent on recalled images", "tangent", "tangent_recalled", "tangent", "tangent", "seed of the images"
    ),
    Measure("response to recalled images", "responses", "recalled", "responses", "response", "seed of the images"),
    Measure(
        "three readings of recalled images", "readings", "recalled_three", "readings", "readings", "seed of the images"
    ),
)  # fmt: skip
_ATOMS, _MOMENTS, _TANGENT, _RESPONSE, _READINGS = (measure.title for measure in MEASURES)

YARDSTICKS = {
    "linear_cka": "linear CKA",
    "minibatch_cka": "unbiased CKA",
    "mean_cca": "mean CCA",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "procrustes": "Procrustes",
}
LIKE = "CKA and CCA on recalled images"  # the yardsticks themselves, on images that need no data

# as the grounding tests call them: our measures, the yardsticks that are put to the same tests, and both
OURS = {measure.grounding: measure.title for measure in MEASURES}
RIVALS = {"cka": YARDSTICKS["linear_cka"], "cca": YARDSTICKS["mean_cca"]}
COMPARED = OURS | RIVALS
SHORT = {**{measure.grounding: measure.short for measure in MEASURES}, **RIVALS}


@dataclass(frozen=True)
class Method:
    """One way to compare networks among all that the section on agreement tries."""

    title: str
    needs: str


METHODS = {
    "cosine_mean": Method("cosine of atoms, mean over layers", "atoms"),
    "cosine_product": Method("cosine of atoms, product of squares", "atoms"),
    "cosine_depth": Method(_ATOMS, "atoms"),
    "grassmann": Method("Grassmann (rank 3), mean over layers", "atoms"),
    "projection": Method("projection (rank 3), mean over layers", "atoms"),
    "moments": Method(_MOMENTS, "atoms, normalisation"),
    "moments_white": Method("moments, of white noise", "atoms, normalisation"),
    "moments_bare": Method("moments, no normalisation", "atoms"),
    "moments_series": Method("moments, rectifier to third order", "atoms, normalisation"),
    "tangent_noise": Method("tangent on 1/f noise", "one network, noise"),
    "tangent_leaves": Method("tangent on dead leaves", "one network, dead leaves"),
    "tangent_recalled": Method(_TANGENT, "one network, recalled images"),
    "tangent_recalled_cka": Method("tangent on recalled images, as CKA", "one network, recalled images"),
    "white": Method("response to white noise", "passes of noise"),
    "noise": Method("response to 1/f noise", "passes of noise"),
    "noise_cka": Method("CKA on 1/f noise", "passes of noise"),
    "leaves": Method("response to dead leaves", "passes of dead leaves"),
    "leaves_cka": Method("CKA on dead leaves", "passes of dead leaves"),
    "recalled_one": Method("response to images recalled from the first network", "passes of recalled images"),
    "recalled": Method(_RESPONSE, "passes of recalled images"),
    "recalled_cka": Method("CKA on recalled images", "passes of recalled images"),
    "recalled_cca": Method("mean CCA on recalled images", "passes of recalled images"),
    "recalled_three": Method(_READINGS, "passes of recalled images"),
    "recalled_own": Method("recalled, each layer's own atoms alone, over depth", "passes of recalled images"),
    "recalled_atoms": Method("recalled, all atoms but no normalisation", "passes of recalled images"),
    "real": Method("response to 64 real images", "64 real images"),
    "real_cka": Method("CKA on 64 real images", "64 real images"),
}

# computed along with the grounding tests, so that a reader sees whether another choice would have done better
VARIANTS = {
    "atoms_mean": METHODS["cosine_mean"].title,
    "atoms_product": METHODS["cosine_product"].title,
    "responses_real": "response to the rivals' real images",
    "cka_recalled": "linear CKA on recalled images",
    "atoms_change": "cosine of changes of atoms since the first task",
    "responses_change": "change of responses since the first task",
    "cka_change": "linear CKA of changes of features since the first task",
}
