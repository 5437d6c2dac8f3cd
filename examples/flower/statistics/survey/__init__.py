"""Statistics over the tables of hospitals."""
