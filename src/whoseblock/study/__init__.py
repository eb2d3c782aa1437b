"""The three designs of the fsdax discussion, measured against each other.

Who owns a failed page can be tracked page by page, tracked by shared extent, or asked for on
demand.  Here all three do the same work: `world` is the filesystem and the page cache that they
watch, `dax` the way from a failed page to them, `workloads` what happens, `run` lets it happen and
compares them after every step.
"""
