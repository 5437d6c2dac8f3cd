"""Other frameworks on our seam, each a thin module and an extra."""
