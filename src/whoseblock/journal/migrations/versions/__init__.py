"""One module for each revision; their numbers ascend."""
