"""Tasks with exclusive classes and with regions, and networks that are right about them."""

import numpy as np
import torch

from mambamim_nets.bundle.labels import Targets

BTCV_LIKE = {"spleen": 1, "right kidney": 2, "left kidney": 3}
BRATS = {"TC": [1, 4], "WT": [1, 2, 4], "ET": [4]}
BRATS_LABELS = {"necrotic core": 1, "oedema": 2, "enhancing tumour": 4}
TASKS = {
    "classes": Targets(BTCV_LIKE),
    "BraTS": Targets(BRATS_LABELS, BRATS),
    "BraTS 2023": Targets(
        {"necrotic core": 1, "oedema": 2, "enhancing": 3}, {"TC": [1, 3], "WT": [1, 2, 3], "ET": [3]}
    ),
    "KiTS": Targets({"kidney": 1, "tumour": 2, "cyst": 3}, {"all": [1, 2, 3], "masses": [2, 3], "tumour": [2]}),
    "apart": Targets({"left": 5, "right": 9}, {"left": [5], "right": [9]}),
}


def random_map(targets, seed=0, shape=(5, 7, 6)):
    values = np.array([0, *targets.labels])
    return torch.from_numpy(np.random.default_rng(seed).choice(values, (1, *shape)).astype(np.uint8))


def encoded(targets, label_map):
    """The probabilities of a network that is right: one per region, or one per class with the background first."""
    masks = targets.masks(label_map).float()
    return masks if targets.regions else torch.cat([(label_map == 0).float(), masks])
