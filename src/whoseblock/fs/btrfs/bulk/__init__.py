"""Many questions together: the leaves that they need, each read once and decoded as arrays."""
