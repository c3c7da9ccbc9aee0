"""Images of any size, read a region at a time: photos, TIFF, slides, arrays."""
