"""Finding the affine maps of a model: one file per kind of source."""
