"""Good data for failed blocks: from the page cache, and from copies that the user names.

`locations` finds copies, `verification` checks them, `authority` says for which files one counts,
`page_cache` reads what memory still has, and `replacement` decides what each owner gets.
"""
