"""Run the rows of a paper's table on a data set of one's own, and write them beside the paper's numbers.

`python -m mambamim_nets.reproduce --table mask_ratio --data DIR` starts `python -m monai.bundle run` commands and
nothing else: there is no second trainer. The tables are data, in `tables.json`.

Glossary
    table   rows of a paper: each a label, the paper's number, how its encoder is pre-trained and how it is fine-tuned
    run     one folder: a pre-training, or a fine-tuning with its evaluation; rows that need the same run share it
    budget  what all rows of a table have in common: data, cases, epochs, seeds, size
    cell    one row, fold and seeds of a table; its values are those of one fine-tuning
    kept    what a fine-tuning was evaluated to, case by case, in a file that can be committed
"""
