"""Tables and figures of a study, and calculations from its results."""
