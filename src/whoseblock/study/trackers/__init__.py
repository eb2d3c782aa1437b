"""The three designs of the discussion, behind one protocol."""
