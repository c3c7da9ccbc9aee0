"""Building blocks of figures: layout in inches, images with patches marked."""
