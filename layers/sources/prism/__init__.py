"""Reader of PrismLayers."""
