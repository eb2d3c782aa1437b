"""Arrays and volume groups assembled from the images of their members."""
