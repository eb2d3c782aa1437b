"""From a failed address to an offset in a filesystem's device.

`base` has the words; the other modules know one part of the stack each.
"""
