"""Map a failed address to an offset in a filesystem's device.

`base` defines layers and segments; `formats` parses on-disk formats; `kernel` reads what the
running kernel reports; `images` assembles arrays and volume groups from their members' images.
"""
