"""Detection networks and the burst-spiking networks converted from them. Imports `data` only."""
