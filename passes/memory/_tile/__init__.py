"""Tiling: compute a region of a graph tile by tile, so that what is inside never exists whole.

region.py     which ops can be computed in tiles together, along which axis of each
grid.py      which interval of every value a tile needs: numbers, or multiples of a step known at run time
emit.py       the tiles' ops, and the Concat that puts them together
estimate.py   what a tiling would need and cost, on paper
choose.py     the regions worth looking at, around the peak
"""
