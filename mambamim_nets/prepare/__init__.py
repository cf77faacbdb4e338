"""Prepare a store of thousands of volumes for pre-training: `python -m mambamim_nets.prepare`.

`read` lists the volumes of sources and reads them, `decide` brings them to the grid of the store and says what is odd,
`write` keeps volumes, index and tables; `work` does all three for one volume after another, in as many processes as
wanted.
"""
