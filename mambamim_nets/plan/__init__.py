"""Plan a data set: read what it holds, decide how to train on it, and write a MONAI bundle that does so.

`python -m mambamim_nets.plan --dataset_dir DIR --output bundles/NAME` reads every case once (`fingerprint`), decides by
written rules (`rules`, whose sources are in docs/PLANNING.md), measures the memory of a training step (`measure`), and
writes a bundle with the body that all segmentation bundles share (`writer`).

Glossary
    fingerprint   what a data set holds: grids, intensities, classes, and what to look at
    decision      a value of the task block with the reason for it
    budget        the memory that a training step may take
    template      the configurations that every segmentation bundle shares, without those of one data set
"""
