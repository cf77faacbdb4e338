"""Train every fold of a bundle, choose by what was found out of fold, and hand over an ensemble.

`python -m mambamim_nets.cross_validate --bundle bundles/msd_seg` starts `python -m monai.bundle run` commands, by the
runner of `mambamim_nets.reproduce`, and nothing else: there is no second trainer.

Glossary
    candidate     a way to train the same bundle, such as from scratch or from an encoder; each trains every fold
    out of fold   of a case: by the network of the fold that held the case out, which has not seen it
    outcome       the weights of the chosen candidate, one file for each fold, and `configs/cross_validated.json`
"""
