"""Events, boxes, recordings, scenes, datasets. Imports none of the other packages."""
