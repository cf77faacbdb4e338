"""The kind "dementia": brains whose hippocampi shrink and whose ventricles widen with the diagnosis."""

import numpy as np
from phantom_sizes import millilitres

from mambamim_nets import phantom
from mambamim_nets.phantom.dementia import ATROPHY, DIAGNOSES


def test_atrophy_is_on_average_that_of_the_diagnosis():
    """Of seeds 0, 1, 2, 3, 4, ... in turn; the spread is so wide that single subjects of neighbours overlap."""
    volumes = {
        diagnosis: np.array(
            [
                [millilitres(phantom.make("dementia", seed, spacing=3), value) for value in (1, 2)]
                for seed in range(DIAGNOSES.index(diagnosis), 20, len(DIAGNOSES))
            ]
        )
        for diagnosis in ("NC", "AD")
    }
    (ventricles, hippocampi), (wide, small) = (volumes[diagnosis].mean(0) for diagnosis in ("NC", "AD"))
    assert ATROPHY["NC"] < ATROPHY["AD"]
    assert wide > 1.15 * ventricles and small < 0.9 * hippocampi
