"""Tiling: compute a region of a graph tile by tile, so that what is inside never exists whole.

In the order in which `fit` uses them:

choose.py       the regions worth looking at, around the peak; grown by growth.py from an op along an axis, so that no
                path leaves a region and comes back (reachability.py); region.py is what comes out
grid.py         which interval of every value a tile needs: numbers, or multiples of a step known at run time;
                smallest_extent.py says from which extent on the latter hold
propagation.py  from those of a tile's results to those of all values inside, halos included
estimate.py     what a tiling would need and cost, on paper (costs.py, accumulation_costs.py)
emit.py         the tiles' ops (building.py, tile_operators.py), one after the other (control_dependence.py), and the
                Concat that puts results together, or the sums of partial results (accumulation.py)
remat.py        values that are computed again for a late use, before anything is cut
equal_extents.py    extents that a Concat finds equal, or the model does not run: for planning, they are
"""
