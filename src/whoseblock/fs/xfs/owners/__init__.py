"""The owners of ranges: from the reverse-mapping btree, compared with other structures."""
