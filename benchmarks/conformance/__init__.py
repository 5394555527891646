"""Is a method implemented correctly? `check` measures it on small random backbones.

A property raises `Broken` where it does not hold, `NothingToCheck` where it says nothing.
"""
