"""The three designs of the fsdax discussion, measured against each other.

The owners of a failed page can be tracked by page, tracked by shared extent, or queried on demand.
`simulation` is a filesystem with its page cache, failures and workloads. `trackers` are the three
designs. `measurements` runs workloads under all of them and compares them after every step.
`report` makes tables and figures of the results.
"""
