"""Images to learn from: folders, labels, boxes, masks; augmentation and collation; the embedded digits."""
