"""Programs that torture the product for hours: power cuts, random actions, chaos.

`make torture` runs them all; the tests of the same names run each for a short while.
"""
