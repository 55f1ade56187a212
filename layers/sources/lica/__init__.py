"""Reader of LICA, which renders components by their CSS."""
