"""Several models and seeds, trained and tested alike."""
