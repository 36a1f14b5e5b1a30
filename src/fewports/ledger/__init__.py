"""Who holds which port."""
