"""Event data: types, readers, writers, representations, simulation and datasets. Imports none of the other packages."""
